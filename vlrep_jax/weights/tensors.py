"""Files of named tensors, opened lazily and without torch: safetensors, npz and torch's archives.

A file is untrusted: its header is checked before any tensor is read, nothing in it is executed, and
one tensor at a time comes into memory.
"""

import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vlrep_jax.weights import pickles

SUFFIXES = {".safetensors": "safetensors", ".npz": "npz"} | dict.fromkeys(
    (".pt", ".pth", ".bin", ".ckpt"), "torch"
)
# safetensors' names of dtypes that weights come in.
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}

MAX_HEADER_BYTES = 16 * 2**20  # bigG's is 150 KiB
# Weights hardly shrink; what does so much more is there to fill the memory.
MAX_SHRINKING, BOMB_BYTES = 64, 2**30

# What reading a damaged archive raises: encrypted and unknown kinds of members are RuntimeErrors.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, SafetensorError),
    *(RuntimeError, OSError, EOFError, ValueError, OverflowError, MemoryError),
    *(TypeError, SyntaxError, tokenize.TokenError),  # NumPy reads a header as Python's literals
)


@contextmanager
def _telling(path, what):
    """Any complaint about a damaged file as one ValueError that names the file and the part."""
    try:
        yield
    except _DAMAGED as error:
        raise ValueError(f"{path}: {what} cannot be read: {_line(error)}.") from error


def _line(error):
    """What an error says, in one line: it may quote names from the file."""
    return "".join(c if c.isprintable() else "?" for c in str(error))


@dataclass(frozen=True)
class Tensor:
    """A tensor that has not been read.

    Attributes:
      shape, dtype: as it is stored.
      rows: () -> context of a function that gives its next n rows (along the first dimension; a
        scalar is one row), so that a large tensor need not lie in memory as a whole.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Callable[[], AbstractContextManager[Callable[[int], np.ndarray]]]

    def read(self) -> np.ndarray:
        """The whole tensor."""
        with self.rows() as take:
            return take(self.shape[0] if self.shape else 1).reshape(self.shape)


class Tensors(Mapping):
    """name -> `Tensor` of one or more open files; close it, or use it in a `with`.

    Attributes:
      path: of the file (of the index, where there are several).
      torchscript: whether it is an archive that `torch.jit.save` wrote.
    """

    def __init__(self, path: Path, named: dict[str, Tensor], closing, torchscript: bool = False):
        self.path, self._named, self._closing = path, named, closing
        self.torchscript = torchscript

    def __getitem__(self, name):
        return self._named[name]

    def __iter__(self):
        return iter(self._named)

    def __len__(self):
        return len(self._named)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._closing.close()


def open_tensors(path: Path) -> Tensors:
    """Opens a file of tensors by its suffix.

    Args:
      path: `.safetensors`, a `.safetensors.index.json` over several, `.npz`, or what torch.save or
        torch.jit.save wrote (`.pt`, `.pth`, `.bin`, `.ckpt`).

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, of another kind, or holds what is refused; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    if path.name.endswith(".index.json"):
        return _open_sharded(path)
    kind = SUFFIXES.get(path.suffix)
    if kind is None:
        known = ", ".join(sorted({*SUFFIXES, ".safetensors.index.json"}))
        raise ValueError(f"{path}: files of weights end in one of {known}.")
    with ExitStack() as stack:
        torchscript = False
        if kind == "safetensors":
            named = _safetensors(path, stack)
        elif kind == "npz":
            named = _npz(path, stack)
        else:
            named, torchscript = _torch(path, stack)
        odd = [name for name in named if not name.isprintable()]
        if odd:
            raise ValueError(f"{path} has tensors whose names are no words: {_few(odd)}.")
        return Tensors(path, named, stack.pop_all(), torchscript)


def _open_sharded(index: Path) -> Tensors:
    """The files that a `model.safetensors.index.json` names, as one."""
    where = weight_map(index)
    named = {}
    with ExitStack() as stack:
        for name in sorted(set(where.values())):
            # A name alone: an index is not to reach files elsewhere, nor itself.
            if not name or Path(name).name != name or name.endswith(".index.json"):
                raise ValueError(f"{index}: {name!r} is not a file of tensors beside it.")
            part = stack.enter_context(open_tensors(index.parent / name))
            for key, tensor in part.items():
                if key in named:
                    raise ValueError(f"{index}: {key!r} is in more than one of its files.")
                named[key] = tensor
        lacking = sorted(where.keys() - named.keys())
        if lacking:
            raise ValueError(f"{index}: no file holds {_few(lacking)}.")
        return Tensors(index, named, stack.pop_all())


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> name of its file, as a `model.safetensors.index.json` has it.

    Raises:
      ValueError: it has no such object of texts.
    """
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index}: the index has no weight_map.")
    return {key: str(name) for key, name in where.items()}


def _safetensors(path, stack):
    try:
        # The library checks the header: its size, and that the tensors tile the file.
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {_line(error)}.") from error
    file = stack.enter_context(path.open("rb"))
    (size,) = struct.unpack("<Q", file.read(8))
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"{path}: its header of {size >> 20} MiB is no model's; it is refused.")
    header = _loads(file.read(size), path)
    header.pop("__metadata__", None)

    def tensor(name, entry):
        shape, (begin, _) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"{path} holds a tensor of dtype {entry['dtype']}, not read here.")

        # Read, not mapped as the library would: mapped pages would count as memory in use.
        @contextmanager
        def opened():
            file.seek(8 + size + begin)
            yield file

        dtype = np.dtype(dtype)
        return Tensor(shape, dtype, _streamed(opened, shape, dtype, partial(_telling, path, name)))

    return {name: tensor(name, entry) for name, entry in header.items()}


def _npz(path, stack):
    archive = _zip(path, stack)
    unpacked = sum(info.file_size for info in archive.infolist())
    if unpacked > max(BOMB_BYTES, MAX_SHRINKING * path.stat().st_size):
        raise ValueError(f"{path} would unpack to {unpacked >> 30} GiB; it is refused.")

    def tensor(info):
        with _telling(path, info.filename), archive.open(info) as file:
            shape, is_fortran, dtype = _npy_header(file)
            rest = info.file_size - file.tell()
        # bfloat16 has no name in this format: it is written as two bytes of anything.
        stored = np.dtype(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else dtype
        if dtype.hasobject:
            raise ValueError(f"{path}: {info.filename} holds Python objects, which are not loaded.")
        if stored.kind not in "fiub" and stored != ml_dtypes.bfloat16:
            raise ValueError(f"{path}: {info.filename} holds {stored}, which is no real number.")
        if any(type(n) is not int or n < 0 for n in shape):
            raise ValueError(f"{path}: {info.filename} has an impossible shape, {shape}.")
        if math.prod(shape) * dtype.itemsize > rest:
            raise ValueError(f"{path}: {info.filename} is shorter than its header says.")

        @contextmanager
        def opened():
            with archive.open(info) as file:
                _npy_header(file)
                yield file

        def read():
            with archive.open(info) as file:
                return np.lib.format.read_array(file, allow_pickle=False).view(stored)

        telling = partial(_telling, path, info.filename)
        if is_fortran:
            return Tensor(shape, stored, _loaded(read, telling))
        return Tensor(shape, stored, _streamed(opened, shape, stored, telling))

    return {info.filename.removesuffix(".npy"): tensor(info) for info in archive.infolist()}


def _npy_header(file):
    """(shape, whether columns come first, dtype) of an array; its file is then at the values."""
    major, _ = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0
    if major > 1:
        header = np.lib.format.read_array_header_2_0
    return header(file)


def _torch(path, stack):
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a whole archive of torch.save or torch.jit.save. Files of torch before "
            "1.6 have another format: load such a file in torch and save it again."
        )
    archive = _zip(path, stack)
    with _telling(path, "its archive"):
        state, torchscript = pickles.state_dict(archive)

    def tensor(stored):
        telling = partial(_telling, path, stored.storage.name)
        if stored.is_contiguous:
            rows = _streamed(lambda: stored.open(archive), stored.shape, stored.dtype, telling)
        else:
            rows = _loaded(lambda: stored.read(archive), telling)
        return Tensor(stored.shape, stored.dtype, rows)

    return {name: tensor(stored) for name, stored in state.items()}, torchscript


def _streamed(opened, shape, dtype, telling):
    """`Tensor.rows` of values that lie in order in a file, `opened` at the first of them."""
    size = math.prod(shape[1:]) * dtype.itemsize

    @contextmanager
    def rows():
        with telling(), opened() as file:

            def take(count):
                data = file.read(count * size)
                if len(data) < count * size:
                    raise ValueError("it is shorter than its tensor")
                return np.frombuffer(data, dtype).reshape(count, *shape[1:])

            yield take

    return rows


def _loaded(read, telling):
    """`Tensor.rows` of values in another order, all read before the first is given."""

    @contextmanager
    def rows():
        with telling():
            left = iter(np.atleast_1d(read()))
            yield lambda count: np.stack([next(left) for _ in range(count)])

    return rows


def _zip(path, stack):
    with _telling(path, "its directory"):
        archive = stack.enter_context(zipfile.ZipFile(path))
    twice = [name for name, n in Counter(archive.namelist()).items() if n > 1]
    if twice:
        raise ValueError(f"{path} holds {_few(twice)} more than once.")
    return archive


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
      ValueError: it is not JSON, not an object, or names a key twice.
    """
    return _loads(Path(path).read_bytes(), path)


def _loads(data, path):
    def unique(pairs):
        twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        if twice:
            raise ValueError(f"{_few(twice)} more than once")
        return dict(pairs)

    try:
        found = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not sound JSON: {_line(error)}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not an object.")
    return found


def _few(names, most=5):
    names = [repr(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
