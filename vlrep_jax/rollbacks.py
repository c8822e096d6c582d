"""WORKDIR/rollbacks.json: to where a run went back after spikes of its loss, and how it went on.

It outlives the process: a run that is killed after going back does not meet the same batches again.
"""

import json
from pathlib import Path
from typing import NamedTuple

from vlrep_jax.workdirs import write_json

FILE_NAME = "rollbacks.json"


class Rollback(NamedTuple):
    """to: the step gone back to. spike: that whose loss was one. next_batch: of the step to + 1."""

    to: int
    spike: int
    next_batch: int


def read(workdir: Path) -> list[Rollback]:
    """All of them, the oldest first.

    Raises:
      ValueError: the file was changed or cut.
    """
    path = workdir / FILE_NAME
    try:
        return [
            Rollback(*(int(entry[name]) for name in Rollback._fields))
            for entry in json.loads(path.read_text(encoding="utf-8"))["rollbacks"]
        ]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no rollbacks ({error}); it was changed or cut.") from None


def write(workdir: Path, entries: list[Rollback]) -> None:
    """Replaces all of them."""
    write_json(workdir / FILE_NAME, {"rollbacks": [entry._asdict() for entry in entries]})


def up_to(entries: list[Rollback], step: int) -> list[Rollback]:
    """Those that a run which continues from a step has behind it."""
    return [entry for entry in entries if entry.to <= step]


def next_batch(entries: list[Rollback], step: int) -> int | None:
    """The batch with which to go on at a step; None where it is the one that was saved with it."""
    return next((entry.next_batch for entry in reversed(entries) if entry.to == step), None)
