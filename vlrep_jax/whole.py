"""Files and directories that are there whole or not at all."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path):
    """A path beside `path` to write to, a file or a directory, which becomes `path` at the end.

    What a process left that was killed while it wrote to the same path is removed.

    Raises:
      FileExistsError: there is something already, other than an empty directory.
      OSError: it cannot be written, for want of space or of permission.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise FileExistsError(f"{path} exists already; name another, or remove it.")
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.part-*"):
            if not _is_alive(left.name.rpartition("-")[2]):
                _remove(left)
        yield part
        if path.is_dir():
            path.rmdir()
        os.replace(part, path)
    except OSError as error:
        name = str(error.filename or "")
        # Other files, and what is said of them in words, are the caller's business.
        if error.errno is None or not (name.startswith(str(part)) or str(path).startswith(name)):
            raise
        raise OSError(
            f"{path} cannot be written: {error.strerror or error}; nothing is left of it. Is there "
            "space, and permission, and are its parents directories?"
        ) from error
    finally:
        _remove(part)


def _remove(part):
    if part.is_dir():
        shutil.rmtree(part)
    elif part.is_file():
        part.unlink()


def _is_alive(process):
    """Whether a process of this machine has the number; True for a word that is none."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        pass
    return True
