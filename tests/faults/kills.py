"""Kills a whole run with SIGKILL, again and again: `tests/faults/kills.py --count=100`.

Most kills are aimed at a save, at a random moment of it; the others come at any moment from the
start of the program on. After each, the newest step whose checkpoint was finished must be the one
that the next start continues from, at most two save intervals behind the last step that was
written down; every step that is done again must have the same loss to the last bit; and the run
must end as one that nobody disturbed.
"""

import argparse
import collections
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hosts import START_S, UNENDING, Run, end_of_run
from outcome import assert_same, assert_shown, result

from vlrep_jax import metrics
from vlrep_jax.checkpoint import files

EVERY = 2  # steps from one save to the next
FLAGS = (*UNENDING, f"--config.checkpoint_every={EVERY}", "--config.keep_checkpoints=3")
AIMED = 0.85  # share of kills that are aimed at a save
DELAY_S = 0.02  # of every step


class Killed:
    """What is known of a run from one kill to the next."""

    def __init__(self, workdir):
        self.workdir, self.directory = workdir, workdir / "checkpoints"
        self.losses = {}  # by step, of all sessions
        self.committed = self.written = 0  # newest step whose checkpoint is there; with a row
        self.kept = 0
        self.figures = collections.Counter()
        self.rework = []

    def is_saving(self):
        """Whether a save has begun and not come to its end."""
        return any(self.directory.glob("*.orbax-checkpoint-tmp*"))

    def wait_while(self, run, *, saving):
        """Waits until a save has ended, or begun; returns how long that took."""
        began = time.monotonic()
        while self.is_saving() == saving:
            run.alive()
            assert time.monotonic() < began + START_S, run.text()[-4000:]
            time.sleep(0.002)
        return time.monotonic() - began

    def wait_for_a_save(self, run):
        """Waits for the first save of a start, behind what the last one left."""
        run.wait_for("Training pictures are decoded", 0)
        self.wait_while(run, saving=False)

    def look(self):
        """After a kill: what the disk holds."""
        steps = files.steps_in(self.directory)
        newest = max((s for s in steps if files.is_finished(self.directory, s)), default=0)
        self.figures["committed steps lost"] += newest < self.committed
        self.committed = newest
        self.figures["during a save"] += self.is_saving()
        rows = metrics.read(self.workdir) if (self.workdir / metrics.FILE_NAME).exists() else []
        losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
        steps = [step for step, _ in losses]
        self.figures["rows missing or twice"] += steps != list(range(1, len(steps) + 1))
        # A start that was killed before it looked at the checkpoints has taken nothing away.
        self.written = max([self.written if not steps else 0, *steps])
        self.figures["replayed losses"] += sum(step in self.losses for step in steps[self.kept :])
        self.kept = 0
        for step, loss in losses:
            self.figures["replayed losses that differ"] += (
                self.losses.setdefault(step, loss) != loss
            )

    def follow(self, run):
        """After a start: from where it continues."""
        said = run.text(0)
        at = 0
        if "Continuing from step" in said:
            at = int(said.split("Continuing from step ")[1].split()[0])
        self.figures["torn restores"] += "is damaged" in run.text()
        self.figures["committed steps lost"] += at < self.committed
        self.rework.append(self.written - at)
        self.kept = at  # rows that were not written again


def session(state, rng, start_s, save_s, **options):
    """Starts the run and kills it; returns how long a start and a save took, as far as was seen."""
    began = time.monotonic()
    with Run(state.workdir, *FLAGS, delay_s=DELAY_S, **options) as run:
        if rng.random() > AIMED:
            time.sleep(rng.uniform(0, 1.3 * start_s))
        else:
            state.wait_for_a_save(run)
            start_s = time.monotonic() - began
            # Some saves pass by, so that it is not always the first one of a session.
            for _ in range(rng.integers(0, 4)):
                lasted = state.wait_while(run, saving=True)
                save_s = 0.7 * save_s + 0.3 * lasted
                state.wait_while(run, saving=False)
            time.sleep(rng.uniform(0, 0.9 * save_s))
            while not state.is_saving():  # it was over sooner than the last ones
                state.wait_while(run, saving=False)
                save_s *= 0.7
                time.sleep(rng.uniform(0, 0.9 * save_s))
        run.alive()
        for child in run.children:
            child.send_signal(signal.SIGKILL)
        codes, _ = run.codes()
        assert set(codes) == {-signal.SIGKILL}, run.text()[-4000:]
        begun = "Training pictures are decoded" in run.text(0)
    if begun:
        state.follow(run)
    state.look()
    return start_s, save_s


def main(count, processes, seed, folder):
    """Figures of `count` kills, or of a few more until 70 % of them came during a save."""
    state, rng = Killed(folder / "killed"), np.random.default_rng(seed)
    options = {"count": processes, "devices": 1, "cache": folder / "programs"}
    start_s, save_s, kills, began = 20.0, 0.1, 0, time.monotonic()
    while kills < count or state.figures["during a save"] < 0.7 * kills:
        start_s, save_s = session(state, rng, start_s, save_s, **options)
        kills += 1
        print(f"{kills} of {count} kills, step {state.written}", file=sys.stderr, flush=True)
        assert kills < 2 * count, state.figures
    with Run(state.workdir, *FLAGS, delay_s=DELAY_S, **options) as run:
        state.wait_for_a_save(run)
        run.send(0, signal.SIGTERM)
        codes, _ = run.codes()
        assert set(codes) == {42}, run.text()[-4000:]
        state.follow(run)
    seconds = time.monotonic() - began
    state.look()
    found = result(state.workdir)
    assert_same(found, end_of_run(folder / "undisturbed", found[0], **options))
    assert_shown(state.workdir, found[2])
    return {
        "kills": kills,
        **state.figures,
        "steps": found[0],
        "most steps done again": max(state.rework),
        "seconds": round(seconds),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(main(args.count, args.processes, args.seed, Path(scratch)), indent=2))
