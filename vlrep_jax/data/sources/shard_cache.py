"""Copies of a store's shards on the local disk: fetched once, ahead of use, within a bound."""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

from vlrep_jax.data.sources.claims import abandoned, claim, hold, is_left, remove
from vlrep_jax.data.sources.stores import Remote

_LOG = logging.getLogger(__name__)
_FETCHES = 4  # shards that are read ahead at once
_SUFFIX, _PART, _LOCK = ".shard", ".part", "room.lock"
_TEMPORARY = "vlrep_shards_"
_ABANDONED_S = 600  # since the last byte of a copy
_PATIENCE_S, _LOOK_S = 3600, 0.05


class Changed(OSError):
    """An object is not what the index knows."""


class ShardCache:
    """Local copies, shared by all processes that have the same folder.

    Args:
        folder: '' for a temporary one, which is removed with this object or its process; the
            copies in any other stay for the next run.
        max_bytes: of all copies together. The one used longest ago goes first.
        storage_options: for fsspec.
    """

    def __init__(self, folder, max_bytes, storage_options=None):
        if folder:
            self.folder = Path(folder).expanduser().absolute()
            self.folder.mkdir(parents=True, exist_ok=True)
        else:
            for left in abandoned(Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*")):
                shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
            self.folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
            hold(descriptor)
            weakref.finalize(self, _removed_by, os.getpid(), self.folder, descriptor)
        self._max_bytes, self._options = max_bytes, storage_options
        self._start()

    def _start(self):
        self._lock, self._queue, self._asked = threading.Lock(), None, {}

    def __getstate__(self):
        own = ("_lock", "_queue", "_asked")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state):
        vars(self).update(state)
        self._start()

    def opened(self, shard):
        """A descriptor of a shard's copy, which is fetched if it is not there.

        Raises:
            FileNotFoundError: the store has no such object any more.
            Changed: it has another one under this name.
            OSError: the store cannot be read.
        """
        path = self._path(shard)
        for _ in range(3):  # another process may remove it between the two calls
            self._fetch(shard, path)
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            with suppress(OSError):  # a file system may not take it
                os.utime(descriptor)  # used now; by its path it may have gone already
            return descriptor
        raise OSError(
            f"{path} is removed as soon as it is fetched: too many shards are read at once for "
            f"cache_bytes={self._max_bytes:,}."
        )

    def ahead(self, shards):
        """Fetches shards in the background, in their order; those that are there cost nothing."""
        with self._lock:
            if self._queue is None:
                self._queue = _fetchers(self)
            self._asked = {p: f for p, f in self._asked.items() if not f.done()}
            for shard in shards:
                path = self._path(shard)
                if path not in self._asked and not path.exists():
                    self._asked[path] = Future()
                    self._queue.put((self._asked[path], self._quietly, shard, path))

    def _quietly(self, shard, path):
        try:
            self._fetch(shard, path)
        except OSError as error:  # whoever needs it meets the error itself
            _LOG.info("%s was not read ahead: %s", shard.path, error)

    def _path(self, shard):
        named = f"{shard.path} {shard.size} {shard.stamp}"
        return self.folder / (hashlib.sha256(named.encode()).hexdigest()[:32] + _SUFFIX)

    def _fetch(self, shard, path):
        if path.exists():
            return
        with claim(path.with_suffix(".claim"), path.exists, f"fetches {shard.path}") as mine:
            if mine:
                self._copy(shard, path)

    def _copy(self, shard, path):
        remote = Remote(shard.path, self._options)
        now = remote.now()
        if (now.size, now.stamp) != (shard.size, shard.stamp):
            raise Changed(f"{shard.path} has changed since it was indexed.")
        part = path.with_suffix(_PART)
        try:
            self._reserve(part, shard.size)
            remote.save(part, shard.size)
            with self._alone():  # who counts meanwhile would miss both names
                os.replace(part, path)
        except FileNotFoundError as error:  # the object is there: now() has seen it
            raise OSError(f"{part} was removed while {shard.path} was fetched.") from error
        finally:
            remove(part)

    @contextmanager
    def _alone(self):
        """No other thread or process adds to the folder or renames in it while the block runs."""
        with self._lock:
            descriptor = os.open(
                self.folder / _LOCK, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644
            )
            try:
                with suppress(OSError):  # some network file systems have no locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    def _reserve(self, part, size):
        """Makes the file, of its whole length, once there is room; others' fetches may end first.

        Raises:
            OSError: there is none, for too many shards are fetched at once.
        """
        tries = int(_PATIENCE_S / _LOOK_S)
        for _ in range(tries):
            with self._alone():
                if self._make_room(size):
                    with part.open("wb") as file:
                        os.truncate(file.fileno(), size)
                    return
            time.sleep(_LOOK_S)
        raise OSError(
            f"{self.folder} has no room for a shard of {size:,} bytes within cache_bytes="
            f"{self._max_bytes:,}: other processes' fetches fill it. Raise cache_bytes."
        )

    def _make_room(self, size):
        """Removes what was used longest ago; whether there is room for `size` bytes then."""
        total, held = size, []
        for entry in os.scandir(self.folder):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            if entry.name.endswith(_PART):
                old = time.time() - status.st_mtime > _ABANDONED_S
                if old or is_left(Path(entry.path).with_suffix(".claim")):
                    remove(entry.path)
                    continue
            total += status.st_size * entry.name.endswith((_SUFFIX, _PART))
            if entry.name.endswith(_SUFFIX):
                held.append((status.st_mtime_ns, status.st_size, entry.path))
        for _, used, path in sorted(held):
            if total <= self._max_bytes:
                break
            remove(path)
            total -= used
        return total <= self._max_bytes


def _fetchers(cache):
    """The queue of threads that fetch for as long as the cache is there.

    They are daemons, unlike a pool's: no program waits at its end for shards that none will read.
    """
    queue = SimpleQueue()
    for _ in range(_FETCHES):
        threading.Thread(target=_serve, args=(queue,), name="shards", daemon=True).start()
        weakref.finalize(cache, queue.put, None)
    return queue


def _serve(queue):
    while (asked := queue.get()) is not None:
        future, fetch, *arguments = asked
        try:
            future.set_result(fetch(*arguments))
        except Exception as error:
            future.set_exception(error)
        del asked, future, fetch, arguments  # they would keep the cache alive


def _removed_by(owner, folder, descriptor):
    # A child that was forked holds the same object, and must not end its parent's copies.
    if os.getpid() == owner:
        gone = folder.with_suffix(".gone")
        with suppress(OSError):
            os.rename(folder, gone)  # so that no fetch on its way adds to what is being removed
        shutil.rmtree(gone, ignore_errors=True)
    os.close(descriptor)
