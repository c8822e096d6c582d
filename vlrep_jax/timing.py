"""Where the time of a run went, and what of it the devices spent without work."""

import contextlib
import math
import queue
import threading
import time
from typing import NamedTuple

import jax
import numpy as np


class Timed(NamedTuple):
    """When a step ran, in time.monotonic().

    start: when it could have begun: at the end of the one before it, or of what came between them.
    begun: when it was. end: when its result was there.
    """

    start: float
    begun: float
    end: float


class DeviceWatch:
    """Knows when each step has ended, without anyone waiting for it."""

    def __init__(self):
        self._begun, self._ended_at = queue.SimpleQueue(), 0.0
        self._followed = self._ended = 0
        self._rested_at = time.monotonic()
        self._timed: dict[int, Timed] = {}
        threading.Thread(target=self._run, daemon=True).start()

    def follow(self, step: int, metrics) -> None:
        """A step was begun that ends when these arrays are there."""
        self._followed += 1
        self._begun.put((step, metrics, self._rested_at, time.monotonic()))

    def rest(self) -> None:
        """Something else than steps came to its end, and none is under way."""
        self._rested_at = time.monotonic()

    def finished_at(self) -> float:
        """time.monotonic() at the end of the step begun last, now at most; 0 before the first."""
        return self._ended_at if self._ended == self._followed else time.monotonic()

    def taken(self) -> dict[int, Timed]:
        """The times of all steps since this was asked last; those still running are waited for."""
        while self._ended != self._followed:
            time.sleep(1e-4)
        timed, self._timed = self._timed, {}
        return timed

    def close(self) -> None:
        """Ends the watching."""
        self._begun.put(None)

    def _run(self):
        while (followed := self._begun.get()) is not None:
            step, metrics, rested_at, begun = followed
            with contextlib.suppress(Exception):  # whoever takes the metrics gets the error too
                jax.block_until_ready(metrics)
            end = time.monotonic()
            self._timed[step] = Timed(max(self._ended_at, rested_at), begun, end)
            self._ended_at = end
            self._ended += 1


class Clock:
    """Where the wall time went: seconds by phase."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, phase: str, until: float = math.inf) -> None:
        """Books the time since the last lap, or what of it lies before `until`."""
        now = max(min(time.monotonic(), until), self._since)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now


class Interval:
    """The rate of training since a step, evaluations and saving left out."""

    def __init__(self, step: int, clock: Clock):
        self._step, self._clock, self._began = step, clock, self._read(clock)

    def until(self, step: int, batch_size: int) -> dict[str, float]:
        """Images a second over all devices, and the share of time that they waited for data."""
        training, waiting = self._read(self._clock) - self._began
        seconds, steps = training + waiting, step - self._step
        if not steps or not seconds:
            return {}
        return {
            "train/images_per_second": steps * batch_size / seconds,
            "train/data_wait_fraction": waiting / seconds,
        }

    @staticmethod
    def _read(clock):
        return np.array([clock.seconds.get(k, 0.0) for k in ("training", "waiting for data")])
