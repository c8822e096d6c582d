"""Which pictures an index is to hold: files of a folder or a pattern, members of tar archives.

Nothing is decoded here; a picture is told by its name, and by a size and a stamp that change when
it does.
"""

import errno
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

from vlrep_jax.data.decoding import BadImage
from vlrep_jax.data.sources.folder import PICTURES
from vlrep_jax.data.sources.reading import MAX_BYTES
from vlrep_jax.data.sources.stores import find, is_remote, local_stamp
from vlrep_jax.data.sources.tar_members import COMPRESSED, Damaged, members

TAR = "tar:"


class Found(NamedTuple):
    """A picture that is there; nothing of it was read.

    Attributes:
      name: unique; the path of a file, or that of an archive, a slash and the member's name.
      file: the file that holds it.
      place: offset of its bytes in the file; None where it is the whole file.
      size: its bytes.
      stamp: changes when the file does.
    """

    name: str
    file: str
    place: int | None
    size: int
    stamp: str


def find_pictures(patterns: Sequence[str]) -> tuple[list[Found], list[str]]:
    """The pictures that patterns stand for, sorted by name, each once.

    Args:
      patterns: each a folder, whose pictures are found by their endings at any depth (names that
        begin with a dot, and links to folders, are left out); a file or glob of files, whatever
        their endings; or `tar:` and a path or pattern of archives, with braces and globs.

    Returns:
      The pictures, and a line about each archive that could not be read to its end.

    Raises:
      FileNotFoundError: a pattern stands for no picture.
      OSError: a folder or a file cannot be looked at.
      ValueError: an archive is compressed.
    """
    found, problems = {}, []
    for pattern in patterns:
        if pattern.startswith(TAR):
            pictures = _in_archives(pattern.removeprefix(TAR), problems)
        elif os.path.isdir(pattern):
            pictures = _in_folder(pattern)
        else:
            pictures = _files(pattern)
        own = {picture.name: picture for picture in pictures}
        if not own:
            known = f" ({', '.join(PICTURES)})" if os.path.isdir(pattern) else ""
            raise FileNotFoundError(f"--images={pattern} stands for no picture{known}.")
        found = own | found
    return [found[name] for name in sorted(found)], problems


def read(picture: Found) -> tuple[bytes, Found]:
    """The bytes of a picture, and the picture as it was when they were read.

    Raises:
      FileNotFoundError: its file is gone.
      BadImage: with reason `unreadable` (no permission, no ordinary file), `changed` (its archive,
        since it was found) or `too_large`.
    """
    try:
        descriptor = os.open(picture.file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with closing(open(descriptor, "rb", buffering=0)):
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):  # a named pipe would never end
                raise BadImage("unreadable", "it is no ordinary file")
            stamp, size = local_stamp(status), status.st_size
            if picture.place is not None:
                size = picture.size
                if stamp != picture.stamp:
                    raise BadImage("changed", "its archive is another than when it was found")
            if size > MAX_BYTES:
                raise BadImage("too_large", f"{size:,} bytes of at most {MAX_BYTES:,}")
            data = os.pread(descriptor, size, picture.place or 0)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadImage("unreadable", error.strerror or str(error)) from error
    if len(data) != size:
        raise BadImage("changed", "it is shorter than it was")
    return data, picture._replace(size=size, stamp=stamp)


def _in_folder(top) -> Iterator[Found]:
    for folder, below, names in os.walk(os.path.abspath(top), onerror=_not_looked_at):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(PICTURES) and not name.startswith("."):
                yield from _file(os.path.join(folder, name))


def _files(pattern) -> Iterator[Found]:
    # A name may hold brackets, and is then no pattern.
    literal = os.path.lexists(pattern)
    for path in [pattern] if literal else glob.iglob(pattern, recursive=True):
        yield from _file(os.path.abspath(path))


def _file(path) -> Iterator[Found]:
    try:
        status = os.stat(path)
    except OSError as error:
        return _not_looked_at(error)
    if stat.S_ISREG(status.st_mode):
        yield Found(path, path, None, status.st_size, local_stamp(status))


def _not_looked_at(error):
    """Only what is gone is gone: a link to nothing, or removed since its folder was listed."""
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        raise OSError(
            f"{error.filename} cannot be looked at ({error.strerror}), so nobody knows which "
            "pictures there are: the index stays as it was."
        ) from error


def _in_archives(pattern, problems) -> Iterator[Found]:
    if is_remote(pattern):
        raise ValueError(f"--images={TAR}{pattern}: archives have to be local files.")
    try:
        archives = find(pattern)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"--images={TAR}{pattern}: {error}") from None
    for archive in archives:
        descriptor = os.open(archive.path, os.O_RDONLY | os.O_CLOEXEC)
        with closing(open(descriptor, "rb", buffering=0)):
            _check_plain(archive.path, os.pread(descriptor, 8, 0))
            try:
                for _, place, size, name, problem in members(
                    lambda offset, length, of=descriptor: os.pread(of, length, offset)
                ):
                    if place + size > archive.size:
                        raise Damaged("truncated")
                    name = os.fsdecode(name)
                    if not problem and name.lower().endswith(PICTURES):
                        name = f"{archive.path}/{name}"
                        yield Found(name, archive.path, place, size, archive.stamp)
            except (Damaged, OSError, OverflowError) as error:
                problems.append(f"{archive.path} is damaged ({error}); what lies before is taken.")


def _check_plain(path, magic):
    for mark, (kind, remedy) in COMPRESSED.items():
        if magic.startswith(mark):
            raise ValueError(f"{path} is compressed ({kind}): unpack it first ({remedy}).")
