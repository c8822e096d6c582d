"""SIGTERM and SIGINT: all processes of a run stop at one step, whichever of them is told to.

It imports no jax, so that a command can listen before it loads anything.
"""

import os
import signal
import sys
import threading
import time

from vlrep_jax.exits import STOPPED_CODE

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ANSWER_S = 600  # a process that is gone is found before, by its heartbeat
_NONE = "none"  # the answer of a process that has done no step since it started


class Stop:
    """Listens for signals while it is entered, in the main thread.

    The first signal asks all processes to stop, a second one ends this process at once. A signal
    interrupts neither compiling nor reading in C++, and Python's handlers wait for these: a thread
    reads the signals' numbers from a pipe instead, so that both kinds are answered at any moment.
    """

    def __init__(self, *, leaves_early: bool = False):
        """Listens once entered.

        Args:
          leaves_early: end the process with exit code 42 when told to stop before the first step
            is done, as nothing is to be saved then. Otherwise that step is done and saved first.
        """
        self._leaves_early = leaves_early
        self._lock = threading.Lock()  # held while the processes agree: `at` has to wait for that
        self._asked = 0  # how often `at` was
        self._step = None  # it was asked for last
        self._stop_at = None  # how often it is asked until it says so
        self._cluster = None
        self._received = []

    def __enter__(self):
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)  # as set_wakeup_fd wants it
        # The handler does the one thing that must be in order with the main thread: a signal that
        # came between two steps is known at the next.
        self._old = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._old_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self._writer)  # which ends the thread
        self._thread.join()
        os.close(self._reader)

    def join(self, cluster) -> None:
        """From now on all processes of a `cluster.Cluster` stop together."""
        with self._lock:
            self._cluster = cluster
            if cluster.count > 1:
                self._stop_at = None  # for all processes to say
        cluster.on("stop", self._agree)
        if self._received and cluster.count > 1:  # while the others were being waited for
            cluster.tell("stop", _words(self._received[0], cluster.name))

    def at(self, step: int) -> bool:
        """Whether to stop at a step boundary: the same answer for the same step on every process.

        Args:
          step: steps done; every process asks at each of them. Should they go back to an earlier
            one, all do: so they agree on how often they have asked rather than on a step.
        """
        with self._lock:
            self._asked += 1
            self._step = step
            return self._stop_at is not None and self._asked >= self._stop_at

    @property
    def _has_done_a_step(self):
        # Asked before the first step, and after it, once it is compiled and running.
        return self._asked > 1

    def _note(self, number, _):
        if self._cluster is None or self._cluster.count == 1:
            self._stop_at = 0

    def _listen(self):
        while numbers := os.read(self._reader, 64):
            for number in numbers:
                if number in SIGNALS:
                    self._received.append(number)
                    self._answer(number)

    def _answer(self, number):
        cluster = self._cluster
        if len(self._received) > 1:
            reason = _words(number, cluster.name if cluster else "this process") + ", twice"
            if cluster is not None:
                cluster.end(reason, 128 + number)
            _leave(f"{reason}: ended at once.", 128 + number)
        elif cluster is None or cluster.count == 1:
            if self._leaves_early and not self._has_done_a_step:
                _leave_unchanged(_words(number, "this process"))
            _say(f"{_words(number, 'this process')}: stopping at the next step.")
        else:
            cluster.tell("stop", _words(number, cluster.name))

    def _agree(self, reason):
        """Answers a wish to stop, heard from whichever process: how far is this one?"""
        cluster = self._cluster
        with self._lock:
            mine = str(self._asked) if self._has_done_a_step else _NONE
            cluster.tell(f"stop/{cluster.index}", mine)
            answers = [cluster.hear(f"stop/{i}", _ANSWER_S) for i in range(cluster.count)]
            if _NONE in answers and self._leaves_early:
                cluster.leave_together()
                _leave_unchanged(reason)
            asked = [int(answer) for answer in answers if answer != _NONE]
            # Nobody has been told to go past the largest, and everybody will ask for the next.
            self._stop_at = max(asked) + 1 if asked else 0
            at = self._step + self._stop_at - self._asked if asked and self._asked else 0
        _say(f"{reason}: all processes stop at step {at}.")


def _words(number, where):
    return f"{signal.Signals(number).name} to {where}"


def _say(text):
    print(text, file=sys.stderr, flush=True)


def _leave_unchanged(reason):
    _leave(f"{reason}: stopped before a step was done; nothing is to be saved.", STOPPED_CODE)


def _leave(text, code):
    _say(text)
    time.sleep(0)  # lets what other threads print come out whole
    os._exit(code)
