"""Work that several processes or hosts need and one does: the first claims it, the others wait."""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress

_LOG = logging.getLogger(__name__)
_BEAT_S = 2.0
_DEAD_S = 30.0  # an owner that has not beaten for so long, by the waiting process's own clock
_LOOK_S = 0.1
_FRESH_S = 1.0


@contextmanager
def claim(path, is_done, what):
    """Holds the claim file `path` while the block runs; waits for whoever holds it already.

    The owner renews the file's time. One who died leaves a file that grows old, which the next
    removes; should two come to that at once, both work, so the result must be written by a rename.

    Args:
        path: of the claim file, in a folder that exists.
        is_done: () -> bool, whether another has done the work meanwhile.
        what: the work, for the log line of those who wait.

    Yields:
        Whether the work is to be done here.
    """
    if not _taken(path, is_done, what):
        yield False
        return
    ended = threading.Event()

    def beat():
        while not ended.wait(_BEAT_S):
            try:
                os.utime(path)
            except OSError:
                return

    thread = threading.Thread(target=beat, daemon=True, name="claim")
    thread.start()
    try:
        # Another may have finished between the look and the claim.
        yield not is_done()
    finally:
        ended.set()
        thread.join()
        remove(path)


def remove(path):
    """Removes a file, which may be gone already."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def hold(descriptor):
    """Marks an open file or folder as in use until it is closed, as the end of a process does."""
    with suppress(OSError):  # some network file systems have no locks
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def abandoned(paths):
    """Those files and folders of `hold`'s that no process has open any more."""
    found = []
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its maker has yet to hold it in the first moments.
            if time.time() - os.fstat(descriptor).st_mtime > _FRESH_S:
                found.append(path)
        except OSError:  # held, or no locks here
            pass
        finally:
            os.close(descriptor)
    return found


def _taken(path, is_done, what):
    """True once the claim file is ours; False when the work is done."""
    seen, since, said = None, time.monotonic(), False
    me = _me()
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            pass
        else:
            try:
                os.write(descriptor, json.dumps(me).encode())
            except OSError:  # the disk is full: no one shall wait for this process
                remove(path)
                raise
            finally:
                os.close(descriptor)
            return True
        beat, owner = _state(path)
        if not said:
            _LOG.info("waiting for %s, who %s", owner or "another process", what)
            said = True
        if beat != seen:
            seen, since = beat, time.monotonic()
        if beat is not None and (time.monotonic() - since > _DEAD_S or _is_dead(owner, me)):
            _LOG.warning("%s died while it %s; doing it again", owner, what)
            remove(path)
            continue
        time.sleep(_LOOK_S)
        if is_done():
            return False


def is_left(path):
    """Whether a claim is of a process of this host that has ended."""
    return _is_dead(_state(path)[1], _me())


def _me():
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _state(path):
    """Time of the last beat and the owner; None for both where the file has gone."""
    try:
        beat = os.stat(path).st_mtime_ns
        with open(path, encoding="utf-8") as file:
            return beat, json.load(file)
    except FileNotFoundError:
        return None, None
    except ValueError:  # made, but not written yet
        return beat, None


def _is_dead(owner, me):
    if not owner or owner.get("host") != me["host"]:
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, TypeError):
        return False
    return False
