"""Writing files of named tensors, one tensor at a time, without torch."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]
Named = Iterable[tuple[str, np.ndarray]]


def write_safetensors(path: Path, shapes: Shapes, tensors: Named) -> None:
    """A safetensors file of float32, with the mark that `transformers` looks for."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for key, shape in shapes.items():
        end = offset + 4 * int(np.prod(shape))
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of 8
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        _each(shapes, tensors, lambda key, tensor: file.write(_bytes(tensor)))


def write_npz(path: Path, shapes: Shapes, tensors: Named) -> None:
    """An `.npz` of float32, as `numpy.savez` writes it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def write(key, tensor):
            with archive.open(f"{key}.npy", "w", force_zip64=tensor.nbytes >= 2**31) as file:
                np.lib.format.write_array(file, tensor, allow_pickle=False)

        _each(shapes, tensors, write)


def write_torch(path: Path, shapes: Shapes, tensors: Named) -> None:
    """A state dict of float32, as `torch.save` writes it and `torch.load` reads it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _state_dict_pickle(shapes))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        numbers = {key: i for i, key in enumerate(shapes)}

        def write(key, tensor):
            with archive.open(
                f"archive/data/{numbers[key]}", "w", force_zip64=tensor.nbytes >= 2**31
            ) as file:
                file.write(_bytes(tensor))

        _each(shapes, tensors, write)


def _bytes(tensor: np.ndarray) -> memoryview:
    """Those of a contiguous array, not copied. (`tofile` does not say why it cannot write.)"""
    return memoryview(tensor.reshape(-1)).cast("B")


def _each(shapes: Shapes, tensors: Named, write: Callable):
    """Writes every tensor as contiguous float32, in the order of `shapes`."""
    for (key, shape), (found, tensor) in zip(shapes.items(), tensors, strict=True):
        tensor = np.ascontiguousarray(tensor, np.dtype("<f4")).reshape(shape)
        assert found == key, f"{found} comes where {key} was announced"
        write(key, tensor)


def _state_dict_pickle(shapes: Shapes) -> bytes:
    """The pickle of an OrderedDict of tensors: spelt out, for its classes are torch's."""
    out = bytearray(pickle.PROTO + b"\x02")

    def glob(module, name):
        out.extend(pickle.GLOBAL + f"{module}\n{name}\n".encode())

    def text(value):
        encoded = value.encode()
        out.extend(pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded)

    def integers(values):
        out.extend(pickle.MARK)
        for value in values:
            digits = pickle.encode_long(value)
            out.extend(pickle.LONG1 + bytes([len(digits)]) + digits)
        out.extend(pickle.TUPLE)

    glob("collections", "OrderedDict")
    out.extend(pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.MARK)
    for number, (key, shape) in enumerate(shapes.items()):
        text(key)
        glob("torch._utils", "_rebuild_tensor_v2")
        size = int(np.prod(shape))
        out.extend(pickle.MARK + pickle.MARK)  # the call's arguments, and in them the storage's id
        text("storage")
        glob("torch", "FloatStorage")
        text(str(number))
        text("cpu")
        out.extend(pickle.BININT + struct.pack("<i", size))
        out.extend(pickle.TUPLE + pickle.BINPERSID)
        out.extend(pickle.BININT1 + b"\x00")  # offset
        integers(shape)
        integers(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        out.extend(pickle.NEWFALSE)
        glob("collections", "OrderedDict")  # backward hooks: none
        out.extend(pickle.EMPTY_TUPLE + pickle.REDUCE)
        out.extend(pickle.TUPLE + pickle.REDUCE)
    out.extend(pickle.SETITEMS + pickle.STOP)
    return bytes(out)
