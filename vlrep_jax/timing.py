"""Where the time of a run went, and what of it the devices spent without work."""

import contextlib
import math
import queue
import threading
import time

import jax
import numpy as np


class DeviceWatch:
    """Knows when the step that was begun last has ended, without anyone waiting for it."""

    def __init__(self):
        self._begun, self._ended_at = queue.SimpleQueue(), 0.0
        self._followed = self._ended = 0
        threading.Thread(target=self._run, daemon=True).start()

    def follow(self, metrics) -> None:
        """A step was begun that ends when these arrays are there."""
        self._followed += 1
        self._begun.put(metrics)

    def finished_at(self) -> float:
        """time.monotonic() at the end of the step begun last, now at most; 0 before the first."""
        return self._ended_at if self._ended == self._followed else time.monotonic()

    def close(self) -> None:
        """Ends the watching."""
        self._begun.put(None)

    def _run(self):
        while (metrics := self._begun.get()) is not None:
            with contextlib.suppress(Exception):  # whoever takes the metrics gets the error too
                jax.block_until_ready(metrics)
            self._ended_at = time.monotonic()
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
