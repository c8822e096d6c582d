"""Files of tensors: what is written is read back, and nothing in a bad file is believed or run."""

import io
import json
import resource
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vlrep_jax.weights import files
from vlrep_jax.weights.tensors import MAX_HEADER_BYTES, open_tensors
from vlrep_jax.whole import whole

WRITERS = {
    "a.safetensors": files.write_safetensors,
    "a.npz": files.write_npz,
    "a.pt": files.write_torch,
}


def some_tensors():
    rng = np.random.default_rng(0)
    shapes = {"a/b": (3, 4), "scalar": (), "c.weight": (2, 1, 5), "long": (300,)}
    return {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}


def written(path, tensors=None):
    tensors = tensors or some_tensors()
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    WRITERS[path.name](path, shapes, tensors.items())
    return tensors


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_read_back(tmp_path, name):
    expected = written(tmp_path / name)
    with open_tensors(tmp_path / name) as found:
        assert {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in expected.items()}
        for key, tensor in found.items():
            np.testing.assert_array_equal(tensor.read(), expected[key])


def test_other_libraries_read_what_is_written(tmp_path):
    from safetensors.numpy import load_file

    expected = written(tmp_path / "a.safetensors")
    for key, tensor in load_file(tmp_path / "a.safetensors").items():
        np.testing.assert_array_equal(tensor, expected[key])
    written(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert set(found) == set(expected)
        np.testing.assert_array_equal(found["c.weight"], expected["c.weight"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int64"])
def test_dtypes_of_others_are_read(tmp_path, dtype):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    save_file({"x": values}, tmp_path / "a.safetensors")
    with open_tensors(tmp_path / "a.safetensors") as found:
        np.testing.assert_array_equal(found["x"].read(), values)
    np.savez(tmp_path / "a.npz", x=values)
    with open_tensors(tmp_path / "a.npz") as found:
        read = found["x"].read()
        assert read.dtype == values.dtype
        np.testing.assert_array_equal(read, values)


def test_an_index_joins_its_files_and_reaches_no_other(tmp_path):
    save_file({"x": np.ones(2, np.float32)}, tmp_path / "one.safetensors")
    save_file({"y": np.zeros(3, np.float32)}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"

    def opened(weight_map):
        index.write_text(json.dumps({"weight_map": weight_map}))
        return open_tensors(index)

    with opened({"x": "one.safetensors", "y": "two.safetensors"}) as found:
        assert set(found) == {"x", "y"} and found["y"].shape == (3,)
    with pytest.raises(ValueError, match="no file holds 'z'"):
        opened({"x": "one.safetensors", "z": "two.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"three.safetensors: no such file"):
        opened({"x": "three.safetensors"})
    with pytest.raises(ValueError, match="is not a file of tensors beside it"):
        opened({"x": "../one.safetensors"})
    for itself in (index.name, "", "."):
        with pytest.raises(ValueError, match="is not a file of tensors beside it"):
            opened({"x": itself})
    for wrong in ({}, ["x"], 3):
        with pytest.raises(ValueError, match="no weight_map"):
            opened(wrong)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_cut_anywhere_is_told(tmp_path, name):
    path = tmp_path / name
    written(path)
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    for length in [0, 1, 8, *rng.integers(9, len(data) - 1, 20)]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=str(path)):
            open_tensors(path)


@pytest.mark.parametrize("name", WRITERS)
def test_flipped_bytes_never_raise_anything_else(tmp_path, name):
    """What is read may be wrong in value: these formats have no checksum for everything."""
    path = tmp_path / name
    written(path)
    data = path.read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            with open_tensors(path) as found:
                for tensor in found.values():
                    assert tensor.read().shape == tensor.shape
        except ValueError as error:
            assert str(path) in str(error)


def test_hostile_headers(tmp_path):
    path = tmp_path / "a.safetensors"

    def header(value, data=b""):
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)

    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        open_tensors(path)
    header(b"[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        open_tensors(path)
    header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"\0" * 4)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        open_tensors(path)
    header(b"{}" + b" " * (MAX_HEADER_BYTES + 1))
    with pytest.raises(ValueError, match="header of 16 MiB is no model's"):
        open_tensors(path)
    header({"a\nb": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4)
    with pytest.raises(ValueError, match=r"names are no words: 'a\\nb'"):
        open_tensors(path)
    entry = b'"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header(b"{" + entry + b"," + entry + b"}", b"\0" * 4)
    with pytest.raises(ValueError, match="'x' more than once"):
        open_tensors(path)


def test_objects_and_lies_in_an_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="Python objects"):
        open_tensors(path)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.zeros(4, np.float32))
    lie = buffer.getvalue().replace(b"(4,)", b"(9,)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", lie)
    with pytest.raises(ValueError, match="shorter than its header says"):
        open_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", buffer.getvalue())
    with pytest.raises(ValueError, match=r"holds 'x.npy' more than once"):
        open_tensors(path)


def test_an_npz_that_unpacks_to_much_more_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(2**20, np.float32))
    with open_tensors(path) as found:
        assert not found["x"].read().any()
    monkeypatch.setattr("vlrep_jax.weights.tensors.BOMB_BYTES", 2**20)
    with pytest.raises(ValueError, match=r"would unpack to \d+ GiB; it is refused"):
        open_tensors(path)


@pytest.mark.parametrize(
    "header",
    [
        "{1: 2, 'a': 3}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
        "{'descr': '<U5', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (10000000,)}",
        "{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}",
        "(" * 5000,
        "-" * 5000 + "1",
    ],
)
def test_hostile_headers_in_an_npz(tmp_path, header):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1)
        archive.writestr("x.npy", start + header.encode() + b"\n" + b"\0" * 64)
    with pytest.raises(ValueError, match=r"a\.npz: x\.npy "):
        open_tensors(path)


def test_other_kinds_of_files_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_tensors(tmp_path / "a.pt")
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"files of weights end in one of .*\.npz"):
        open_tensors(tmp_path / "a.h5")


def test_nothing_half_written_is_left(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(RuntimeError), whole(path) as part:
        part.mkdir()
        (part / "x").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with whole(path) as part:
        part.write_text("whole")
    with pytest.raises(FileExistsError, match="exists already"), whole(path):
        pass
    assert path.read_text() == "whole"
    # What has to do with it is told of it, and nothing else.
    for failing, message in (
        (lambda part: (part / "x" / "y").write_text("x"), "new cannot be written: No such file"),
        (lambda part: (path / "x").write_text("x"), "Not a directory"),
        (lambda part: (tmp_path / "nothing").read_text(), "No such file"),
    ):
        with pytest.raises(OSError, match=message) as caught, whole(tmp_path / "new") as part:
            failing(part)
        assert ("cannot be written" in str(caught.value)) == ("cannot be written" in message)
    with pytest.raises(OSError, match="cannot be written"), whole(path / "below"):
        pass


def test_bfloat16_survives_npz(tmp_path):
    values = np.arange(5).astype(ml_dtypes.bfloat16)
    np.savez(tmp_path / "a.npz", x=values)
    with open_tensors(tmp_path / "a.npz") as found:
        assert found["x"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, name):
    tensors = {"x": np.zeros(100_000, np.float32)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with (
            pytest.raises(OSError, match=rf"{name} cannot be written: File too large; nothing is"),
            whole(tmp_path / name) as part,
        ):
            WRITERS[name](part, {"x": (100_000,)}, tensors.items())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("x")
    told = pytest.raises(OSError, match=r"file/x cannot be written: .*are its parents directories")
    with told, whole(tmp_path / "file" / "x"):
        pass
    (tmp_path / "link").symlink_to("nowhere")
    with (
        pytest.raises(FileExistsError, match="link exists already"),
        whole(tmp_path / "link"),
    ):
        pass
