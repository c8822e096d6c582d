"""The pickle inside a torch archive, read by an unpickler that admits tensors and nothing else.

Every name that the pickle asks for is one of the few below or refused; none of torch's code, nor
any other that the file names, is ever imported or called. A TorchScript archive holds its modules
as objects of classes of its own: they become plain containers here.
"""

import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

MAX_PICKLE_BYTES = 16 * 2**20  # bigG's is below 1 MiB
MAX_DIMENSIONS = 8


class _Sealed:
    """What a pickle may name or make, and not change afterwards: it can set any object's state."""

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes a tensor or a function; it is refused")


@dataclass(frozen=True)
class _Kind(_Sealed):
    """Of a storage's values. A NumPy type itself could be called, to make any number of arrays."""

    dtype: type


_STORAGES = {
    "DoubleStorage": _Kind(np.float64),
    "FloatStorage": _Kind(np.float32),
    "HalfStorage": _Kind(np.float16),
    "BFloat16Storage": _Kind(ml_dtypes.bfloat16),
    "LongStorage": _Kind(np.int64),
    "IntStorage": _Kind(np.int32),
    "ShortStorage": _Kind(np.int16),
    "CharStorage": _Kind(np.int8),
    "ByteStorage": _Kind(np.uint8),
    "BoolStorage": _Kind(np.bool_),
}


@dataclass(frozen=True)
class _Storage(_Sealed):
    dtype: np.dtype
    name: str  # of the archive's member
    bytes: int  # its size


@dataclass(frozen=True)
class StoredTensor(_Sealed):
    """Where a tensor lies in an archive: elements offset, offset + stride... of a member."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self):
        return np.dtype(self.storage.dtype)

    @property
    def is_contiguous(self):
        """Whether its rows lie one after the other."""
        return self.stride == tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))

    def open(self, archive: zipfile.ZipFile):
        """A file at its first value; raises what `zipfile` does on a damaged archive."""
        file = archive.open(self.storage.name)
        file.seek(self.offset * self.dtype.itemsize)
        return file

    def read(self, archive: zipfile.ZipFile) -> np.ndarray:
        """The tensor as an array, whatever its strides; errors as `open`."""
        size = self.dtype.itemsize
        steps = zip(self.shape, self.stride, strict=True)
        count = 1 + sum((n - 1) * step for n, step in steps) if math.prod(self.shape) else 0
        with self.open(archive) as file:
            data = file.read(count * size)
        if len(data) < count * size:
            raise ValueError("it is shorter than its tensor")
        flat = np.frombuffer(data, self.dtype)
        strides = tuple(step * size for step in self.stride)
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)


class _Named(dict):
    """A dictionary of a pickle, in which no key is set twice."""

    def __setitem__(self, key, value):
        if key in self:
            raise pickle.UnpicklingError(f"it holds {key!r} more than once")
        super().__setitem__(key, value)

    def __setstate__(self, state):
        pass  # the versions of modules, which torch keeps beside a state dict's tensors


class _Module(_Named):
    """A module of a TorchScript archive: its attributes by name."""

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.update(state)


class _Inert:
    """A value that says nothing about weights, such as a dtype or a layout."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


@dataclass(frozen=True)
class _Function(_Sealed):
    """A function that a pickle may call."""

    called: Callable

    def __call__(self, *args):
        return self.called(*args)


@_Function
def _tensor(storage, offset, size, stride, *_):
    plain = isinstance(storage, _Storage) and len(size) == len(stride) <= MAX_DIMENSIONS
    if not plain or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor is described wrongly")
    tensor = StoredTensor(storage, offset, tuple(size), tuple(stride))
    # By strides of 0 a few bytes would stand for any number of values.
    if math.prod(tensor.shape) * tensor.dtype.itemsize > storage.bytes:
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return tensor


@_Function
def _first(value, *_):
    """What wraps one value, such as `Parameter`; lists are not copied, for that could be often."""
    return value


@_Function
def _ordered_dict():
    return _Named()


_ADMITTED = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch", "Size"): _first,
    ("torch", "device"): _Inert,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "build_tensorlist"): _first,
}
_DTYPE_NAMES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


class _Unpickler(pickle._Unpickler):
    """The one in Python, whose dictionaries can be ours: the one in C would let keys repeat."""

    dispatch = pickle._Unpickler.dispatch.copy()

    def load_empty_dictionary(self):
        self.append(_Named())

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def load_dict(self):
        items, made = self.pop_mark(), _Named()
        for key, value in zip(items[::2], items[1::2], strict=True):
            made[key] = value
        self.append(made)

    dispatch[pickle.DICT[0]] = load_dict

    def __init__(self, file, folder, members):
        super().__init__(file, encoding="utf-8")
        self._folder, self._members = folder, members

    def find_class(self, module, name):
        admitted = _ADMITTED.get((module, name))
        if admitted is not None:
            return admitted
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _DTYPE_NAMES:
            return _Inert()
        if module.split(".")[0] == "__torch__":  # what TorchScript compiled, under its own names
            return _Module
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which is not a tensor; it is refused"
        )

    def persistent_load(self, pid):
        word, kind, key, *_ = pid
        member = f"{self._folder}/data/{key}"
        if word != "storage" or not isinstance(kind, _Kind) or member not in self._members:
            raise pickle.UnpicklingError(f"its storage {key!r} is not in the archive")
        return _Storage(kind.dtype, member, self._members[member].file_size)


def state_dict(archive: zipfile.ZipFile) -> tuple[dict[str, StoredTensor], bool]:
    """The named tensors of an archive, and whether it is TorchScript's.

    A checkpoint of a training (`{"state_dict": ..., "optimizer": ...}`) gives its model's, without
    the prefix `module.` of a distributed one.

    Raises:
      ValueError: no such archive, one that asks for more than tensors, or one without any.
    """
    members = {info.filename: info for info in archive.infolist()}
    pickled = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
    if len(pickled) != 1:
        raise ValueError("it is not one of torch.save or torch.jit.save")
    folder = pickled[0].split("/")[0]
    torchscript = f"{folder}/constants.pkl" in members
    # torch stores what is read here without compression; a compressed member could be a bomb.
    read = [name for name in members if name in pickled or name.startswith(f"{folder}/data/")]
    if any(members[name].compress_type != zipfile.ZIP_STORED for name in read):
        raise ValueError("it has compressed tensors, which torch does not write")
    order = members.get(f"{folder}/byteorder")
    if order is not None and order.file_size < 16 and archive.read(order).strip() != b"little":
        raise ValueError("it was written on a big-endian machine")
    if members[pickled[0]].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB")
    try:
        with archive.open(pickled[0]) as file:
            content = _Unpickler(file, folder, members).load()
    except Exception as error:  # a malformed pickle raises anything
        raise ValueError(str(error)) from error
    if isinstance(content, dict):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    found = _flatten(content, torchscript)
    if not found:
        raise ValueError("it holds no tensors by name")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found, torchscript


def _flatten(content, nested):
    """{dotted name: tensor}; the modules of TorchScript are nested, a state dict is flat."""
    found, waiting = {}, [("", content)]
    seen = set()
    while waiting:
        prefix, mapping = waiting.pop()
        if not isinstance(mapping, dict) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        for key, value in mapping.items():
            if isinstance(value, StoredTensor):
                found[f"{prefix}{key}"] = value
            elif nested and isinstance(value, _Module):
                waiting.append((f"{prefix}{key}.", value))
    return found
