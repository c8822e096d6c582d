"""What `vlrep checkpoints` shows: every step of a work directory, and whether it is whole."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vlrep_jax.checkpoint import files, host
from vlrep_jax.checkpoint.files import Damaged


@dataclass(frozen=True)
class Row:
    """A step on disk.

    Attributes:
      size: bytes of its files.
      saved_at: seconds since 1970; None where its record cannot be read.
      metrics: of the evaluation at that step, if there was one.
      problem: why it is damaged; '' if it is not, None if nobody looked.
    """

    step: int
    size: int
    saved_at: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    problem: str | None = None


def list_steps(directory: Path, *, verify: bool = True) -> list[Row]:
    """The steps of WORKDIR/checkpoints, oldest first; none is changed or moved.

    Args:
      verify: read the arrays and compare their fingerprints; else only the records are read.
    """
    rows = []
    for step in files.steps_in(directory):
        saved_at, metrics, problem = None, {}, "" if verify else None
        try:
            record = files.read_record(directory, step)
            saved_at, metrics = record["saved_at"], record["metrics"]
            if verify:
                host.check(directory, step)
        except Damaged as error:
            problem = str(error)
        rows.append(Row(step, files.size(directory, step), saved_at, metrics, problem))
    return rows


def show(workdir: Path, metric: str, *, as_json: bool = False, verify: bool = True) -> bool:
    """Prints the steps of a work directory.

    Args:
      metric: shown of each step; '' for the first by name.

    Returns:
      Whether no step is known to be damaged.

    Raises:
      FileNotFoundError: the directory holds no checkpoint, finished or not.
    """
    rows = list_steps(workdir / "checkpoints", verify=verify)
    if not rows:
        raise FileNotFoundError(f"{workdir} has no checkpoint yet.")
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        now = time.time()
        print("\n".join(_line(row, metric, now) for row in rows))
    return not any(row.problem for row in rows)


def _line(row, metric, now):
    name = metric or min(row.metrics, default="")
    age = "age unknown" if row.saved_at is None else f"{_age(now - row.saved_at)} old"
    state = {None: "not verified", "": "whole"}.get(row.problem, f"DAMAGED: {row.problem}")
    value = f"{name} {row.metrics[name]:.4f}" if name in row.metrics else "no metric"
    return f"step {row.step:>9}  {row.size / 2**20:9.1f} MiB  {age:>11}  {value}  {state}"


def _age(seconds):
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
