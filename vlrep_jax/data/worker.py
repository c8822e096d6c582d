"""What runs in a worker process of `workers.py`: it makes rows of batches into shared memory.

It loads neither JAX nor Grain: a worker starts in a fraction of a second, and no accelerator or
thread of the training process is touched.
"""

import mmap
import os
import pickle
import signal
import threading
import time
from multiprocessing.connection import Connection

import numpy as np

_ALIGNED = 64  # bytes: where an array may begin


def main(channel_fd, memory_fd, parent_pid):
    """Answers tasks of the parent until it closes the channel or is gone.

    The first message is the pickled loader, to which the answer is None. A task is (slot,
    first_position, indices), the slot being (number, of how many); the answer is (layout, reasons),
    where `layout` says where each array lies: a list of (name, dtype, shape, offset). In place of
    any answer comes the exception that prevented it.
    """
    # The training process hears of a signal and stops when its step is done; its workers with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent_pid,), daemon=True).start()
    channel = Connection(channel_fd)
    memory = _Memory(memory_fd)
    try:
        load = _answered(channel, _loader, channel.recv_bytes())
        while True:
            _answered(channel, memory.fill, load, *channel.recv())
    except (EOFError, ConnectionError):
        return  # the parent closed, or is gone


def _loader(pickled):
    return pickle.loads(pickled), None


def _answered(channel, work, *arguments):
    """Does work that gives (result, answer), and sends the answer or what went wrong."""
    result = None
    try:
        result, answer = work(*arguments)
    except Exception as error:
        answer = _sendable(error)
    channel.send(answer)
    return result


def _end_with(parent_pid):
    """Ends this process once it has another parent: also in the middle of a batch."""
    while os.getppid() == parent_pid:
        time.sleep(0.3)
    os._exit(1)


class _Memory:
    """The worker's side of the shared memory: slots of equal size, grown with the first task."""

    def __init__(self, fd):
        self._fd, self._slot_bytes, self._map = fd, 0, None

    def fill(self, load, slot, first_position, indices):
        """Does a task: the arrays go into the slot, the answer says where they lie."""
        (batch, reasons), layout, end = load(first_position, indices), [], 0
        for name, array in batch.items():
            layout.append((name, array.dtype.str, array.shape, end))
            end += -(-array.nbytes // _ALIGNED) * _ALIGNED
        number, slots = slot
        if self._map is None:
            # Rows of a batch are of one size; the first task is the longest of all.
            self._slot_bytes = end
            os.ftruncate(self._fd, end * slots)
            self._map = mmap.mmap(self._fd, end * slots)
        if end > self._slot_bytes:
            raise ValueError(f"A batch needs {end} bytes, the first needed {self._slot_bytes}.")
        start = number * self._slot_bytes
        layout = [(name, dtype, shape, start + at) for name, dtype, shape, at in layout]
        for (_, dtype, shape, at), array in zip(layout, batch.values(), strict=True):
            np.ndarray(shape, dtype, self._map, at)[...] = array
        return None, (layout, reasons)


def _sendable(error):
    """The exception, or one of its words where it cannot be sent."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
