"""Damages checkpoints in random places and restores: `tests/faults/corruption.py --count=500`.

Each time, some files of a copy of three good steps get a bit flipped, a block zeroed, their end cut
off, or are deleted: one to three of the newest step, or three to twelve of all steps. What is
restored must be, bit for bit, the state saved at the step it says, no older than the newest step
that nothing touched, or nothing at all if every step was hit.
"""

import argparse
import collections
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from several_processes import STEPS, holds, layout, placed

KINDS = ("bit flip", "zeroed block", "truncation", "deletion")


def build(folder):
    """Three steps, saved as a run saves them; most arrays are too long to lie within an index."""
    from vlrep_jax.checkpoint import Checkpoints

    like = layout((4, 2), None)
    checkpoints = Checkpoints(folder)
    for step in STEPS:
        checkpoints.save(step, placed(step, like), {"at": step}, {"config": {"steps": 3}})
    checkpoints.close()
    return like


def damage(path, kind, rng):
    """Changes a file in a random place; returns whether a byte of it changed."""
    before = path.read_bytes()
    if kind == "deletion":
        path.unlink()
        return True
    if not before:
        return False
    data, at = bytearray(before), int(rng.integers(len(before)))
    if kind == "bit flip":
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == "zeroed block":
        length = min(int(rng.choice([16, 512, 4096])), len(data) - at)
        data[at : at + length] = bytes(length)
    else:
        del data[at:]
    path.write_bytes(data)
    return bytes(data) != before


def trial(good, work, like, kind, rng):
    """(outcome, step restored, whether damage was noticed) after damage of a kind."""
    from vlrep_jax.checkpoint import Checkpoints, listing

    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(good, work)
    # Half of the time only the newest step is hit, which is where falling back matters most.
    newest = rng.random() < 0.5
    steps = STEPS[-1:] if newest else STEPS
    paths = sorted(
        path for step in steps for path in (work / "checkpoints" / str(step)).rglob("*")
        if path.is_file()
    )  # fmt: skip
    hit = set()
    count = int(rng.integers(1, 4) if newest else rng.integers(3, 13))
    for index in rng.choice(len(paths), count, replace=False):
        if damage(paths[index], kind, rng):
            hit.add(int(paths[index].relative_to(work / "checkpoints").parts[0]))
    untouched = max(set(STEPS) - hit, default=0)
    problems = {row.step: row.problem for row in listing.list_steps(work / "checkpoints")}
    whole = max((step for step, problem in problems.items() if not problem), default=0)
    try:
        found = Checkpoints(work).newest_good(like)
    except ValueError as error:
        one_line = "\n" not in str(error) and "is whole" in str(error)
        right = hit == set(STEPS) and whole == 0 and one_line
        return "refused" if right else f"wrong: {error}", 0, True
    except BaseException as error:  # whatever else comes up is what is counted here
        return f"crash: {type(error).__name__}: {error}", 0, True
    if not holds(found.state, found.step) or found.data != {"at": found.step}:
        return f"silently wrong: step {found.step}, {kind}", found.step, False
    if found.step < untouched:
        return f"older than need be: {found.step}, {untouched} is good", found.step, True
    if found.step < whole:
        return f"step {found.step} though {whole} is listed as whole", found.step, True
    return "right", found.step, bool(found.notes)


def main(count, seed, folder):
    """(figures, what was not right) of `count` trials."""
    like, begun = build(folder / "good"), time.monotonic()
    figures, wrong = collections.Counter(), []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        rng = np.random.default_rng((seed, number))
        outcome, step, noticed = trial(folder / "good", folder / "work", like, kind, rng)
        if outcome in ("right", "refused"):
            if noticed:
                name = f"noticed: step {step} used" if step else "noticed: no step was whole"
            else:
                name = "harmless: the newest step, bit for bit"
            figures[name] += 1
        else:
            wrong.append(f"{number} ({kind}): {outcome}")
    figures["silently wrong"] = sum("silently" in text for text in wrong)
    figures["crashes"] = sum("crash" in text for text in wrong)
    figures["other"] = len(wrong) - figures["silently wrong"] - figures["crashes"]
    return {"trials": count, "seconds": round(time.monotonic() - begun), **figures}, wrong


if __name__ == "__main__":
    import logging

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures, wrong = main(args.count, args.seed, Path(scratch))
    print(json.dumps(figures, indent=2))
    print("\n".join(wrong))
    sys.exit(bool(wrong))
