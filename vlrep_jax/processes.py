"""What the processes of a run tell each other between steps, so that all take the same path."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def share(text: str) -> list[str]:
    """The texts of all processes, in order; each has to call it at the same point."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size)).reshape(-1)
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [rows[i, :size].tobytes().decode() for i, size in enumerate(sizes)]


def gather(row: np.ndarray) -> np.ndarray:
    """[processes, ...]: an array of each process, all of one shape, in order; as `share`."""
    if jax.process_count() == 1:
        return row[None]
    return np.asarray(multihost_utils.process_allgather(row))


def first_problem(problem: str) -> str:
    """What went wrong on the first process on which something did; '' where all is well."""
    found = [(i, text) for i, text in enumerate(share(problem)) if text]
    if not found:
        return ""
    process, text = found[0]
    return text if jax.process_count() == 1 else f"process {process}: {text}"


def from_first(value: Any) -> Any:
    """The first process's value, which JSON can hold, on every process."""
    is_first = jax.process_index() == 0
    return json.loads(share(json.dumps(value) if is_first else "")[0])
