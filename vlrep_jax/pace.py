"""How long steps take, which of them stand out, and which process keeps the others waiting.

A step ends on all processes at the same time, as all take part in its sums; so its length names
nobody. What does is how late each process was: how long its devices waited for it to begin the
step, and how long it did not run at all. Devices that compute more slowly than others look like
everybody's.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vlrep_jax.timing import Timed

OUTLIER = 3.0  # times the median: such a step stands out
_LEAST_S = 0.1  # and by no less than this
_LATE = 0.1  # share of the time; a process that is late for more of it is told
_HISTORY = 256  # steps of the median
_SAY_EVERY_S = 10.0


def measured(
    timed: Mapping[int, Timed], first: int, size: int, pauses: Iterable[tuple[float, float]]
) -> np.ndarray:
    """float32[2, size]: seconds and lateness of one process's steps first, first + 1, ...

    NaN where a step was not measured.

    Args:
      timed: by step.
      pauses: (begin, end) of times in which the process did not run.
    """
    rows = np.full((2, size), np.nan, np.float32)
    for step, (start, begun, end) in timed.items():
        if first <= step < first + size:
            slept = sum(max(min(end, b) - max(start, a), 0.0) for a, b in pauses)
            late = max(begun - start, slept, 0.0)
            rows[:, step - first] = end - start, late
    return rows


class Pace:
    """The verdict on the steps between two rows of metrics, over all processes."""

    def __init__(self, names: Sequence[str], *, clock=time.monotonic):
        """names: of the processes, in order."""
        self._names, self._clock = names, clock
        self._recent = deque(maxlen=_HISTORY)
        self._said_at, self._slow = -_SAY_EVERY_S, None

    def judge(self, first: int, rows: np.ndarray) -> tuple[dict[str, float], list[str]]:
        """What there is to write and to say of some steps.

        Args:
          first: number of the first of them.
          rows: float32[processes, 2, n], of each process as `measured` gives them.

        Returns:
          Metrics, and lines for the log.
        """
        seconds, late = rows[0, 0], rows[:, 1]
        seen = np.flatnonzero(np.isfinite(seconds) & np.isfinite(late).all(0))
        if not len(seen):
            return {}, []
        seconds, late = seconds[seen], late[:, seen]
        self._recent.extend(map(float, seconds))
        median = float(np.median(self._recent))
        worst = int(np.argmax(seconds))
        values = {
            "time/step_median_s": float(np.median(seconds)),
            "time/step_max_s": float(seconds[worst]),
        }
        lines = []
        if seconds[worst] > max(OUTLIER * median, median + _LEAST_S):
            lines += self._outlier(first + seen[worst], seconds[worst], median, late[:, worst])
        if len(self._names) > 1:
            shares = late.sum(1) / seconds.sum()
            slowest = int(np.argmax(shares))
            values["time/slowest_process"] = slowest
            values["time/slowest_late_fraction"] = float(shares[slowest])
            lines += self._slowest(
                slowest, float(shares[slowest]), first + seen[0], seen[-1] + first
            )
        return values, lines

    def _outlier(self, step, seconds, median, late):
        now = self._clock()
        if now - self._said_at < _SAY_EVERY_S:
            return []
        self._said_at = now
        process = int(np.argmax(late))
        # What took the time beside the usual must be for the most part its lateness.
        if late[process] > 0.5 * (seconds - median):
            why = f"{self._names[process]} was {late[process]:.2g} s late"
        else:
            why = "no process was late to begin it, so it is the devices or what is between them"
        return [
            f"Step {step} took {seconds:.2g} s, {seconds / max(median, 1e-9):.0f} times the median "
            f"of {median:.2g} s: {why}."
        ]

    def _slowest(self, process, share, first, last):
        """Said when it begins, and again when it is another process."""
        slow = process if share > _LATE else None
        if slow == self._slow:
            return []
        self._slow = slow
        if slow is None:
            return []
        return [
            f"{self._names[process]} keeps the others waiting: it was late for {share:.0%} of the "
            f"time of steps {first} to {last}, for its data or other work there."
        ]
