"""Batches made by worker processes: the same ones that threads of this process would make."""

import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections import deque
from multiprocessing.connection import Connection, wait

import cloudpickle
import numpy as np

_ROWS = 64  # of a task, at most: small parts of a batch keep all workers busy and memory low
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from vlrep_jax.data.worker import main; main(*map(int, sys.argv[2:]))"
)
# Each worker is one thread; a source that imports JAX must not take the accelerator.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class WorkerDied(ChildProcessError):
    """A worker process ended by itself, or was killed."""


class WorkerBatches:
    """Endless iterator over (batch, reasons) from a given batch on; workers start at the first.

    Every worker makes parts of batches into memory that it shares with this process. The parts are
    a function of their place in the stream, so it does not matter which worker makes which.

    Args:
        load: a `loading.TrainLoader`.
        indices: batch number -> numbers of its samples, int[b].
        first_position: batch number -> place in the stream of its first row.
        rows: b, of a batch.
        count: worker processes.
        prefetch: batches made ahead.
    """

    def __init__(self, load, indices, first_position, *, rows, count, prefetch):
        self._load, self._indices, self._first_position = load, indices, first_position
        self._rows, self._count, self._prefetch = rows, count, prefetch
        self._part = min(_ROWS, -(-rows // count))
        self._workers = []
        self.go_to(0)

    def go_to(self, number):
        """The next batch is this one."""
        self.close()
        self._next_task = (number, 0)  # batch, row
        self._asked = deque()  # parts in order: [worker, first row, answer or None]

    def __iter__(self):
        return self

    def __next__(self):
        """(batch, reasons).

        Raises:
            WorkerDied: a worker ended.
            Exception: what making the batch raised in a worker.
        """
        if not self._workers:
            self._start()
        batch, reasons, done = {}, [], 0
        while done < self._rows:
            self._ask()
            asked = self._asked[0]
            while asked.answer is None:
                self._receive()
            self._asked.popleft()
            layout, part_reasons = asked.answer
            for name, array in asked.worker.arrays(layout):
                if name not in batch:
                    batch[name] = np.empty((self._rows, *array.shape[1:]), array.dtype)
                batch[name][done : done + len(array)] = array
            asked.worker.free.append(asked.slot)
            reasons.extend(part_reasons)
            done += asked.rows
        self._ask()
        return batch, reasons

    def close(self):
        """Ends the workers."""
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.end()
        self._workers = []

    def _start(self):
        parts = -(-self._rows // self._part) * self._prefetch
        slots = -(-parts // self._count) + 1
        # By value where the class is of the user's script, which no worker runs.
        payload = cloudpickle.dumps(self._load)
        for _ in range(self._count):
            self._workers.append(_Worker(payload, slots))
        for worker in self._workers:
            worker.started()

    def _ask(self):
        """Hands out parts, in order, to the workers that have room and the least to do."""
        while True:
            worker = max(self._workers, key=lambda w: len(w.free))
            if not worker.free:
                return
            number, row = self._next_task
            rows = min(self._part, self._rows - row)
            if not row:
                self._of_batch = np.asarray(self._indices(number))
            position = self._first_position(number) + row
            slot = worker.free.popleft()
            worker.ask((slot, worker.slots), position, self._of_batch[row : row + rows])
            asked = _Asked(worker, slot, rows)
            worker.asked.append(asked)
            self._asked.append(asked)
            self._next_task = (number, row + rows) if row + rows < self._rows else (number + 1, 0)

    def _receive(self):
        for ready in wait([worker.channel for worker in self._workers if worker.asked]):
            worker = next(w for w in self._workers if w.channel is ready)
            worker.asked.popleft().answer = worker.answer()


class _Asked:
    """A part of a batch that a worker makes, and its answer once there is one."""

    def __init__(self, worker, slot, rows):
        self.worker, self.slot, self.rows, self.answer = worker, slot, rows, None


class _Worker:
    """One process, its channel and its memory; `free` are slots, `asked` what it has to do."""

    def __init__(self, payload, slots):
        self.slots, self.free, self.asked = slots, deque(range(slots)), deque()
        self._memory_fd, self._map = _memory(), None
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), self._memory_fd)
        paths = json.dumps([os.path.abspath(path) for path in sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, paths, *map(str, fds), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            env=os.environ | _ENVIRONMENT,
        )
        theirs.close()  # so that the end of the process is the end of the channel
        self.channel = Connection(ours.detach())
        self._send(self.channel.send_bytes, payload)

    def started(self):
        """Waits until the loader is there."""
        try:
            self.answer()
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"A data worker could not load the pipeline ({error}): a worker does not run the "
                "recipe's file. Put what it defines into a module that can be imported, or set "
                "config.data.num_workers=0."
            ) from error

    def ask(self, slot, position, indices):
        self._send(self.channel.send, (slot, position, indices))

    def answer(self):
        try:
            answer = self.channel.recv()
        except (EOFError, ConnectionError):
            raise self._died() from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def arrays(self, layout):
        """(name, array) of an answer's layout; valid until the slot is free again."""
        if self._map is None:
            self._map = mmap.mmap(self._memory_fd, 0)
        return [
            (name, np.ndarray(shape, dtype, self._map, at)) for name, dtype, shape, at in layout
        ]

    def hang_up(self):
        self.channel.close()

    def end(self):
        """Waits for the process, which ends with its task, but not for long."""
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._memory_fd)
        self._map = None

    def _send(self, send, message):
        try:
            send(message)
        except ConnectionError:
            raise self._died() from None

    def _died(self):
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = "unknown"
        why = f"exit code {code}"
        if isinstance(code, int) and code < 0:
            why = f"signal {-code}"
            why += ", as when memory runs out" if code == -9 else ""
        return WorkerDied(
            f"A data worker process ended ({why}); the run stops, and continues from its newest "
            "checkpoint when started again. Fewer config.data.num_workers need less memory."
        )


def _memory():
    """A file descriptor of memory without a name: it is gone with the last process that has it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vlrep_batches")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
