"""What of a run's wall time went into steps that count, over all its sessions, and the rest.

WORKDIR/sessions.jsonl grows by a line at every save and every half minute: it says how far a
session has come and where its time went so far. A session that is killed is known as of its last
line.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

FILE_NAME = "sessions.jsonl"
PRODUCTIVE = "training"  # the phase of `timing.Clock` in which steps run
AGAIN, SKIPPED, BETWEEN = "steps done again", "skipped steps", "between sessions"
_EVERY_S = 30.0


class Line(NamedTuple):
    """One line.

    session: number. began, at: of the session and of this line, in seconds since 1970.
    start_step, step: where it began and how far it is. skipped: of these steps, those that changed
    nothing. seconds: by phase.
    """

    session: int
    began: float
    at: float
    start_step: int
    step: int
    skipped: int
    seconds: dict[str, float]


_NUMBERS = {
    name: float if name in ("began", "at") else int for name in Line._fields if name != "seconds"
}


class Ledger:
    """Keeps the times of a session, on the process that writes."""

    def __init__(
        self,
        workdir: Path,
        start_step: int,
        skipped: int,
        *,
        seconds: Mapping[str, float],
        clock=time.time,
    ):
        """A session begins, or goes on from another step.

        Args:
          start_step: steps done; skipped: how many of them changed nothing.
          seconds: by phase, of the session: it grows while the session lasts.
        """
        self._clock, self._seconds, self._skipped = clock, seconds, skipped
        self._path = workdir / FILE_NAME
        before = read(self._path)
        number = before[-1].session + 1 if before else 0
        began = clock() - sum(seconds.values())
        self._line = Line(number, began, began, start_step, start_step, 0, {})
        self._earlier = parts_of([*before, self._line])
        self._written_at = 0.0

    def note(self, step: int, skipped: int, *, now: bool = False) -> None:
        """Remembers how far the session is; it is written down every half minute, or now.

        Args:
          step: steps done; skipped: how many of them changed nothing.
        """
        at = self._clock()
        self._line = self._line._replace(
            at=at, step=step, skipped=skipped - self._skipped, seconds=dict(self._seconds)
        )
        if now or at - self._written_at > _EVERY_S:
            self._written_at = at
            with suppress(OSError):  # on a full disk the next line says what this one would
                _append(self._path, json.dumps(self._line._asdict()))

    def parts(self) -> dict[str, float]:
        """`parts_of` all sessions up to the last note."""
        now = parts_of([self._line])
        names = dict.fromkeys((*self._earlier, *now))
        return {name: self._earlier.get(name, 0.0) + now.get(name, 0.0) for name in names}


def read(path: Path) -> list[Line]:
    """All lines, but for what a full disk or a kill made of some."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            line = json.loads(text)
            numbers = (kind(line[name]) for name, kind in _NUMBERS.items())
            seconds = {str(phase): float(value) for phase, value in line["seconds"].items()}
            lines.append(Line(*numbers, seconds))
    return lines


def _append(path, line):
    with open(path, "a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        # Of one that was cut short, by a full disk or a kill, the rest stays on a line of its own.
        begin = b"\n" if file.read(1) not in (b"", b"\n") else b""
        file.write(begin + line.encode() + b"\n")


def parts_of(lines: Sequence[Line]) -> dict[str, float]:
    """Seconds of a run's wall time by what they went into; PRODUCTIVE are those that count.

    Steps that a later session did again do not count, whatever they were, nor do those that changed
    nothing (their number times the mean step). BETWEEN is from a session's last line to the next
    one's begin, the loading of the program included.
    """
    sessions = {}
    for line in lines:
        sessions.setdefault(line.session, []).append(line)
    sessions = list(sessions.values())
    parts = dict.fromkeys((PRODUCTIVE, AGAIN, SKIPPED, BETWEEN), 0.0)
    floor = None  # the least step from which a later session began
    for number in range(len(sessions) - 1, -1, -1):
        own = sessions[number]
        last = own[-1]
        for phase, seconds in last.seconds.items():
            if phase != PRODUCTIVE:
                parts[phase] = parts.get(phase, 0.0) + seconds
        kept = last if floor is None else _up_to(own, floor)
        trained, counts = last.seconds.get(PRODUCTIVE, 0.0), kept.seconds.get(PRODUCTIVE, 0.0)
        steps = kept.step - kept.start_step
        idle = counts * kept.skipped / steps if steps else 0.0
        parts[AGAIN] += trained - counts
        parts[SKIPPED] += idle
        parts[PRODUCTIVE] += counts - idle
        if number + 1 < len(sessions):
            parts[BETWEEN] += max(sessions[number + 1][0].began - last.at, 0.0)
        floor = last.start_step if floor is None else min(floor, last.start_step)
    return {name: seconds for name, seconds in parts.items() if seconds > 0}


def _up_to(lines, step):
    """How a session stood at a step, by the last line not behind it."""
    first = lines[0]
    found = first._replace(step=first.start_step, skipped=0, seconds={})
    for line in lines:
        if line.step <= step:
            found = line
    return found


def share(parts: Mapping[str, float]) -> float:
    """Goodput: the productive share of the time."""
    total = sum(parts.values())
    return parts.get(PRODUCTIVE, 0.0) / total if total else 0.0


def words(parts: Mapping[str, float]) -> str:
    """One line: the goodput, and what the rest went into, most first."""
    total = sum(parts.values())
    rest = sorted(((s, name) for name, s in parts.items() if name != PRODUCTIVE), reverse=True)
    listing = ", ".join(f"{name} {seconds / total:.1%}" for seconds, name in rest[:6])
    return (
        f"Goodput {share(parts):.1%} of {total:,.0f} s since the run began"
        f"{f'; the rest: {listing}' if listing else ''}."
    )
