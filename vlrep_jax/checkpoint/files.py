"""The directories under WORKDIR/checkpoints and the record of each step; no array is read here.

STEP/ is a finished checkpoint, or one that something was taken from. damaged-TIME/STEP and
rolled-back-TIME/STEP were set aside and are never touched again. Anything with a longer name is
work that a crash cut short.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

FINISHED = "_CHECKPOINT_METADATA"  # Orbax writes it into a checkpoint before giving it its name
RECORD = Path("record", "metadata")  # where Orbax puts a JSON item named record
REMOVING = ".removing"
LEFTOVERS = ("*.orbax-checkpoint-tmp*", f"*{REMOVING}")


class Damaged(ValueError):
    """A checkpoint that does not hold what was saved; the message is the reason alone."""


def steps_in(directory: Path) -> list[int]:
    """The steps that a directory has a place for, finished or not, oldest first."""
    if not directory.is_dir():
        return []
    names = (p.name for p in directory.iterdir() if p.is_dir())
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def is_finished(directory: Path, step: int) -> bool:
    """Whether a step's checkpoint was finished and still says so."""
    return (directory / str(step) / FINISHED).exists()


def sealed(content: dict) -> dict:
    """A record with the checksum of its content, as it is saved."""
    content = json.loads(json.dumps(content))  # as it will be read: lists, and strings for keys
    return {"checksum": _checksum(content), "content": content}


def read_record(directory: Path, step: int) -> dict:
    """The content of a step's record.

    Raises:
      Damaged: the checkpoint is not finished, or its record is not what was written.
    """
    if not is_finished(directory, step):
        raise Damaged(f"it is not finished: there is no {FINISHED}")
    path = directory / str(step) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        content = record["content"]
        intact = record["checksum"] == _checksum(content)
    except FileNotFoundError:
        raise Damaged(f"there is no {RECORD}, which every checkpoint of this version has") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"{RECORD} cannot be read ({type(error).__name__})") from None
    if not intact:
        raise Damaged(f"{RECORD} is not what was saved")
    if content["step"] != step:
        raise Damaged(f"{RECORD} is of step {content['step']}")
    return content


def metrics_of(directory: Path, step: int) -> dict:
    """The metrics in a step's record; {} where it cannot be read."""
    try:
        return read_record(directory, step)["metrics"]
    except Damaged:
        return {}


def set_aside(directory: Path, steps: Sequence[int], why: str) -> Path:
    """Moves steps into a new directory WHY-TIME beside them, the newest first, and returns it."""
    name = f"{why}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (name, *(f"{name}-{i}" for i in range(2, 1000)))
    target = next(directory / n for n in names if not (directory / n).exists())
    target.mkdir()
    for step in sorted(steps, reverse=True):
        (directory / str(step)).rename(target / str(step))
    return target


def remove(directory: Path, step: int) -> None:
    """Deletes a step; cut short, it leaves no directory that looks like a checkpoint."""
    doomed = directory / f"{step}{REMOVING}"
    (directory / str(step)).rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # what stays is removed by `clear`


def clear(directory: Path) -> list[str]:
    """Deletes what crashed saves and removals left, and returns the names."""
    found = sorted({path for pattern in LEFTOVERS for path in directory.glob(pattern)})
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in found]


def clear_failed(directory: Path, quiet_s: float = 0.5, limit_s: float = 10.0) -> None:
    """`clear` after a failed save, until for a while nothing came of its writes still under way.

    One that comes even later is cleared with the next failure, or when the run starts again.
    """
    end = time.monotonic() + limit_s
    looked = time.monotonic()
    while time.monotonic() < min(end, looked + quiet_s):
        if clear(directory):
            looked = time.monotonic()
        time.sleep(0.05)


def size(directory: Path, step: int) -> int:
    """Bytes of a step's files."""
    return sum(p.stat().st_size for p in (directory / str(step)).rglob("*") if p.is_file())


def _checksum(content):
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
