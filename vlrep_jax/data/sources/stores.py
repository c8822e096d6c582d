"""Where shards lie: local files and object stores (through fsspec), patterns of names, stamps."""

import glob
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_LOCAL = ("file://", "local://")
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
_MAX_FILES = 10_000_000
_BLOCK = 8 << 20  # bytes of one request
_TRIES = 3


class Stored(NamedTuple):
    """One file.

    Attributes:
        path: local path or URL.
        size: bytes.
        stamp: changes when the file does: time of change in ns, or an object's ETag.
    """

    path: str
    size: int
    stamp: str


def is_remote(path):
    """Whether a path is a URL of a store; `file://` is local."""
    return "://" in path and not path.startswith(_LOCAL)


def without_scheme(path):
    """A local path, or a `file://` URL as one."""
    return next((path.removeprefix(s) for s in _LOCAL if path.startswith(s)), path)


def local_path(path):
    """A local path, or a `file://` URL, as an absolute path with `~` replaced."""
    return os.path.abspath(os.path.expanduser(without_scheme(path)))


def braces(pattern):
    """The texts that a brace pattern stands for, as a shell expands it.

    `{000..123}` counts, with the zeros kept; `{a,b}` lists; both nest. Braces without a comma or a
    range are left as they are.

    Raises:
        ValueError: a brace is not closed, or the pattern stands for more than 10 million names.
    """
    parts, depth, start = [], 0, 0
    opened = pattern.find("{")
    if opened < 0:
        return [pattern]
    start = opened + 1
    for place in range(opened, len(pattern)):
        letter = pattern[place]
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0 or (depth == 1 and letter == ","):
            parts.append(pattern[start:place])
            start = place + 1
        if depth == 0:
            break
    else:
        raise ValueError(f"{pattern!r} has a brace that is not closed.")
    counted = _NUMBERS.fullmatch(parts[0]) if len(parts) == 1 else None
    if counted:
        low, high = int(counted[1]), int(counted[2])
        width = max(map(len, counted.groups())) if "0" in (counted[1][0], counted[2][0]) else 0
        if abs(high - low) >= _MAX_FILES:
            raise ValueError(f"{pattern!r} stands for {abs(high - low) + 1:,} names.")
        step = 1 if high >= low else -1
        middles = [f"{number:0{width}d}" for number in range(low, high + step, step)]
    elif len(parts) > 1:
        middles = [text for part in parts for text in braces(part)]
    else:
        middles = ["{" + text + "}" for text in braces(parts[0])]
    ends = braces(pattern[start:])
    if len(middles) * len(ends) > _MAX_FILES:
        raise ValueError(f"{pattern!r} stands for {len(middles) * len(ends):,} names.")
    return [pattern[:opened] + middle + end for middle in middles for end in ends]


def find(patterns, storage_options=None):
    """The files that patterns stand for, in their order; what a glob finds is sorted.

    Args:
        patterns: one or a sequence of paths or URLs, with braces and `*`, `?`, `[...]`.
        storage_options: for fsspec, such as an endpoint.

    Returns:
        List of Stored.

    Raises:
        FileNotFoundError: a file, or any file of a glob, is not there.
        ValueError: nothing is asked for, or a file twice.
    """
    if isinstance(patterns, str | os.PathLike):
        patterns = [patterns]
    patterns = [text for pattern in patterns for text in braces(os.fspath(pattern))]
    if not patterns or not all(patterns):
        raise ValueError("No file is named; set path, for example to 'shards/{000..123}.tar'.")
    found, absent, folders = [], [], {}
    for pattern in patterns:
        looked_up = _remote if is_remote(pattern) else _local
        files = looked_up(pattern, storage_options, folders)
        found += files
        absent += [] if files else [pattern]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise FileNotFoundError(f"There is no file {', '.join(absent[:3])}{more}.")
    if len({file.path for file in found}) < len(found):
        counts = {}
        for file in found:
            counts[file.path] = counts.get(file.path, 0) + 1
        twice = next(path for path, count in counts.items() if count > 1)
        raise ValueError(f"{twice} is named twice.")
    return found


def local_stamp(status):
    """Stamp of an os.stat_result."""
    return str(status.st_mtime_ns)


def _local(pattern, storage_options, folders):
    del storage_options, folders
    pattern, paths = local_path(pattern), [local_path(pattern)]
    # A name may hold brackets, and is then no pattern.
    if glob.has_magic(pattern) and not os.path.lexists(pattern):
        paths = sorted(glob.glob(pattern, recursive=True))
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            found.append(Stored(path, status.st_size, local_stamp(status)))
    return found


def _remote(pattern, storage_options, folders):
    store = file_system(pattern, storage_options)
    path = store._strip_protocol(pattern)
    if glob.has_magic(path):
        details = sorted(store.glob(path, detail=True).items())
        files = [info for _, info in details if info["type"] == "file"]
    else:
        # One listing tells of all shards of a folder: a request for each would take minutes.
        folder = store._parent(path)
        if folder not in folders:
            try:
                folders[folder] = {info["name"]: info for info in store.ls(folder, detail=True)}
            except FileNotFoundError:
                folders[folder] = {}
        files = [folders[folder][path]] if path in folders[folder] else []
    return [_stored(store.unstrip_protocol(info["name"]), info) for info in files]


def _stored(url, info):
    stamp = next((info[name] for name in _STAMPS if info.get(name)), "")
    # Some stores tell a time as seconds in a listing, and as a date otherwise.
    stamp = stamp.timestamp() if hasattr(stamp, "timestamp") else stamp
    return Stored(url, int(info["size"]), str(stamp))


def file_system(url, storage_options=None):
    """The fsspec file system of a URL.

    Raises:
        ModuleNotFoundError: fsspec or the package of this protocol is not installed.
    """
    try:
        import fsspec

        return fsspec.core.url_to_fs(url, **(storage_options or {}))[0]
    except ImportError as error:
        protocol = url.partition("://")[0]
        package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
        raise ModuleNotFoundError(
            f"{protocol}:// needs a package that is not installed: "
            f"pip install fsspec {package.get(protocol, '')}".rstrip()
            + f" ({error})"
        ) from error


class StoreError(OSError):
    """A store failed again and again: no reason to go on with other samples."""


def persist(url, ask):
    """What `ask()` returns; a store is asked three times.

    Raises:
        FileNotFoundError, ValueError: there is no such object, or it cannot have such a name.
        StoreError: every attempt failed.
    """
    for left in reversed(range(_TRIES)):
        try:
            return ask()
        except (FileNotFoundError, ValueError):
            raise
        except Exception as error:  # each store has errors of its own
            if not left:
                words = " ".join(str(error).split()) or type(error).__name__
                raise StoreError(f"{url} cannot be read ({words}).") from error


class Remote:
    """One object, read in ranges.

    Args:
        url: of the object.
        storage_options: for fsspec.
    """

    def __init__(self, url, storage_options=None):
        self.url = url
        self._store = file_system(url, storage_options)
        self._path = self._store._strip_protocol(url)

    def now(self):
        """Stored, as the store has it now.

        Raises:
            FileNotFoundError: the object is gone.
        """
        self._store.invalidate_cache(self._store._parent(self._path))
        return _stored(self.url, persist(self.url, lambda: self._store.info(self._path)))

    def read(self, offset, length):
        """Bytes of a range, fewer only at the end.

        Raises:
            StoreError: the store failed three times.
        """
        return persist(
            self.url,
            lambda: self._store.cat_file(self._path, start=offset, end=offset + length),
        )

    def reader(self, size):
        """(offset, length) -> bytes, as `read`, of an object of `size` bytes.

        One large request serves many small reads that follow each other.
        """
        held = [0, b""]

        def read(offset, length):
            if offset >= size:
                return b""
            end = min(offset + length, size)
            if offset < held[0] or end > held[0] + len(held[1]):
                held[:] = offset, self.read(offset, min(max(length, _BLOCK), size - offset))
            return held[1][offset - held[0] : end - held[0]]

        return read

    def save(self, path, size):
        """Copies the object's `size` bytes to a local file that exists.

        Raises:
            OSError: the store failed, or gave fewer bytes.
        """
        with Path(path).open("r+b") as file:
            for offset in range(0, size, _BLOCK):
                data = self.read(offset, min(_BLOCK, size - offset))
                if len(data) != min(_BLOCK, size - offset):
                    raise OSError(f"{self.url} ended at byte {offset + len(data)} of {size}.")
                file.write(data)


class RemoteFile(io.RawIOBase):
    """One object as a file that can be read and sought; every read is a request.

    Attributes:
        stored: Stored, as the object was when it was opened.

    Raises:
        FileNotFoundError: there is no such object.
        StoreError: the store failed three times, here or at a read.
    """

    def __init__(self, url, storage_options=None):
        super().__init__()
        self._remote, self._place = Remote(url, storage_options), 0
        self.stored = self._remote.now()

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.stored.size}
        self._place = base[whence] + offset
        return self._place

    def tell(self):
        return self._place

    def readinto(self, buffer):
        length = min(len(buffer), self.stored.size - self._place)
        if length <= 0:
            return 0
        data = self._remote.read(self._place, length)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
