"""Ends a process that makes no progress; heartbeats find a dead host, not one that is stuck."""

import faulthandler
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

_LOOK_S = 0.25  # how often the limit is looked at
_NET_S = 1.0  # after the limit a thread in C ends the process, should Python's be stuck too


class Watchdog:
    """Calls `expired(reason)` once a phase lasts longer than its limit.

    Attributes:
      phase: what is being done, for the reason.
      pauses: (begin, end) in time.monotonic() of the newest times in which this process, or its
        Python, did not run: stopped, moved to another machine, or without a processor.
    """

    def __init__(self, expired: Callable[[str], None]):
        self._expired = expired
        self._closed = threading.Event()
        self._limit_s = self._until = None
        self._armed_at = 0.0
        self.phase = ""
        self.pauses: deque[tuple[float, float]] = deque(maxlen=64)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def kick(self, phase: str, limit_s: float) -> None:
        """A phase begins that may last so many seconds; cheap enough for every step."""
        now = time.monotonic()
        changed = limit_s != self._limit_s
        self.phase, self._limit_s, self._until = phase, limit_s, now + limit_s
        # Starting that thread anew takes tens of microseconds, so not more than twice a second.
        if changed or now - self._armed_at > 0.5:
            self._armed_at = now
            # The real stderr: this C thread can write to no other.
            faulthandler.dump_traceback_later(limit_s + _NET_S, exit=True, file=sys.__stderr__)

    def _watch(self):
        looked = time.monotonic()
        while not self._closed.wait(_LOOK_S):
            now = time.monotonic()
            if now - looked > 2 * _LOOK_S:
                self.pauses.append((looked + _LOOK_S, now))
            looked = now
            if self._until is not None and time.monotonic() > self._until:
                self._expired(f"no progress for {self._limit_s:g} s in: {self.phase}")
                return
