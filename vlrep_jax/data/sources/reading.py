"""Reading a file that a table or a folder names, without leaving the directory it may name.

Local paths and fsspec URLs; what cannot be read is a `BadRow` with its reason, never a crash.
"""

import errno
import io
import os
import stat

from vlrep_jax.data.sources.stores import (
    RemoteFile,
    file_system,
    is_remote,
    local_path,
    local_stamp,
    persist,
    without_scheme,
)
from vlrep_jax.data.sources.values import BadRow

# A larger file is no picture that training wants, and would fill the memory of its worker.
MAX_BYTES = 256 * 2**20
_WRONG_NAME = (errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)


def local(path: str) -> str:
    """A local path made absolute, with `~` replaced and without `file://`; URLs stay."""
    return path if is_remote(path) else local_path(path)


def open_binary(path: str, storage_options=None, block: int = 2**16):
    """A local file or an fsspec URL, opened to read bytes.

    Args:
        path: file or URL.
        storage_options: for fsspec.
        block: bytes of the smallest request to a store.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ModuleNotFoundError: the URL needs a package that is not installed.
    """
    if not is_remote(path):
        return open(path, "rb")
    return io.BufferedReader(RemoteFile(path, storage_options), block)


def stamp_of(file):
    """What changes when a file of `open_binary` does, as a JSON value."""
    if isinstance(file.raw, RemoteFile):
        return list(file.raw.stored[1:])
    status = os.fstat(file.fileno())
    return [status.st_size, local_stamp(status)]


def read_bytes(root: str, name: str, storage_options=None) -> bytes:
    """The bytes of a file that untrusted data names.

    Args:
        root: directory or URL; links included, nothing outside it is read. '/' holds every file.
        name: relative to root, or absolute.
        storage_options: for fsspec, where root is a URL.

    Raises:
        BadRow: with reason `missing`, `outside` or `too_large`.
        StoreError: a store failed three times.
    """
    if is_remote(root) or is_remote(name):
        return _read_url(root, name, storage_options)
    try:
        top = os.path.realpath(root)
        path = os.path.realpath(os.path.join(top, without_scheme(name)))
        if path != top and not path.startswith(top.rstrip(os.sep) + os.sep):
            raise BadRow("outside")
        found = os.stat(path)
        # A named pipe or a device would never end.
        if not stat.S_ISREG(found.st_mode):
            raise BadRow("missing")
        if found.st_size > MAX_BYTES:
            raise BadRow("too_large")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadRow("missing") from error


def _read_url(root, name, storage_options):
    joined = name if is_remote(name) else f"{root.rstrip('/')}/{name}"
    inside = joined.startswith(root.rstrip("/") + "/") and ".." not in joined.split("/")
    if not is_remote(root) or not inside:
        raise BadRow("outside")
    if "::" in joined.removeprefix(root):  # fsspec would take what follows for another URL
        raise BadRow("missing")

    def ask():
        system = file_system(joined, storage_options)
        try:
            with system.open(system._strip_protocol(joined), "rb") as file:
                return file.read(MAX_BYTES + 1)
        except Exception as error:
            # The name is wrong, or a web server says so: asked again, the answer is the same.
            status = getattr(error, "status", 0)
            if getattr(error, "errno", 0) in _WRONG_NAME or (400 <= status < 500 and status != 429):
                raise FileNotFoundError(joined) from error
            raise

    try:
        data = persist(joined, ask)
    except (FileNotFoundError, ValueError) as error:
        raise BadRow("missing") from error
    if len(data) > MAX_BYTES:
        raise BadRow("too_large")
    return data
