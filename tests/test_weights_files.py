"""Files of tensors: what is written is read back, and nothing in a bad file is believed or run."""

import io
import json
import os
import pickle
import resource
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from vlrep_jax.weights import files
from vlrep_jax.weights.tensors import open_tensors

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


def test_values_in_another_order_are_read(tmp_path):
    """Columns first, and what torch saves of a transposed matrix, whole and by rows."""
    columns = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.savez(tmp_path / "a.npz", w=columns)
    turned = b"\x80\x02}" + spelt("w") + spelt_tensor((2, 2), (1, 2)) + b"s."
    data = np.arange(4, dtype=np.float32)
    torch_archive(tmp_path / "a.pt", turned, members=[("data/0", data.tobytes())])
    for name, expected in (("a.npz", columns), ("a.pt", data.reshape(2, 2).T)):
        with open_tensors(tmp_path / name) as found:
            np.testing.assert_array_equal(found["w"].read(), expected)
            with found["w"].rows() as take:
                np.testing.assert_array_equal(np.concatenate([take(1), take(1)]), expected)


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


class Evil:
    """Its pickle calls a function when it is loaded."""

    def __init__(self, function, *args):
        self.called = function, args

    def __reduce__(self):
        return self.called


def torch_archive(path, pickled, *, compression=zipfile.ZIP_STORED, members=()):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in members:
            archive.writestr(f"archive/{name}", data)


@pytest.mark.parametrize(
    ("evil", "asked"),
    [
        (lambda path: Evil(os.system, f"touch {path}"), "posix.system"),
        (lambda path: Evil(exec, f"open({str(path)!r}, 'w')"), "exec"),
        (lambda path: Evil(eval, f"open({str(path)!r}, 'w')"), "eval"),
        (lambda path: Evil(getattr, 1, "real"), "getattr"),
        (lambda path: np.ones(3), r"numpy.*_reconstruct"),
        (lambda path: Evil(__import__, "os"), "__import__"),
    ],
)
def test_a_pickle_that_asks_for_more_than_tensors_is_refused(tmp_path, evil, asked):
    touched = tmp_path / "touched"
    torch_archive(tmp_path / "a.pt", pickle.dumps({"w": evil(touched)}))
    with pytest.raises(ValueError, match=rf"cannot be read: it asks for .*{asked}.*refused"):
        open_tensors(tmp_path / "a.pt")
    assert not touched.exists()


def test_a_torch_pickle_by_hand_cannot_reach_other_names_through_admitted_ones(tmp_path):
    """Dotted names, build instructions on admitted functions, and storages outside the archive."""
    attempts = {
        "dotted": b"\x80\x04\x8c\x0ccollections\x8c\x14OrderedDict.__init__\x93.",
        "torch function": b"\x80\x02ctorch\nload\n(U\x01xtR.",
        "hub": b"\x80\x02ctorch.hub\nload\n(U\x01xtR.",
        "storage": b"\x80\x02(U\x07storagectorch\nFloatStorage\nU\x0a../../etc/xU\x03cpuK\x01tQ.",
        "no storage": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00(t(t\x89NtR.",
        "no pickle": b"not a pickle",
        "empty": b"",
        "cut": pickle.dumps({"a": 1})[:-3],
    }
    for name, pickled in attempts.items():
        torch_archive(tmp_path / "a.pt", pickled)
        with pytest.raises(ValueError, match=r"a\.pt: its archive cannot be read: "):
            open_tensors(tmp_path / "a.pt")
            pytest.fail(name)


def asked_for(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def spelt(value):
    """Instructions that make a plain value, without the frame of a whole pickle."""
    return pickle.dumps(value, 2)[2:-1]


def spelt_tensor(shape, stride):
    """Instructions that make a tensor on the archive's member data/0."""
    storage = b"(" + spelt("storage") + asked_for("torch", "FloatStorage")
    storage += spelt("0") + spelt("cpu") + spelt(4) + b"tQ"
    described = storage + spelt(0) + spelt(shape) + spelt(stride) + b"\x89Nt"
    return asked_for("torch._utils", "_rebuild_tensor_v2") + b"(" + described + b"R"


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("what", ["tensor", "function"])
def test_a_pickle_cannot_change_what_it_is_given(tmp_path, what, slots):
    """A tensor's strides, once changed, would reach memory that is not the file's."""
    made = {
        "tensor": spelt_tensor((4,), (1,)),
        "function": asked_for("torch._utils", "_rebuild_tensor_v2"),
    }[what]
    change = {"shape": (1000, 1000), "stride": (1000, -1000), "__defaults__": (1,)}
    change = spelt((None, change) if slots else change)
    pickled = b"\x80\x02}" + spelt("w") + made + change + b"bs."
    torch_archive(tmp_path / "a.pt", pickled, members=[("data/0", b"\0" * 16)])
    with pytest.raises(ValueError, match="it changes a tensor or a function; it is refused"):
        open_tensors(tmp_path / "a.pt")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    pickled = b"\x80\x02}" + spelt("w") + spelt_tensor((2**40, 2), (0, 1)) + b"s."
    torch_archive(tmp_path / "a.pt", pickled, members=[("data/0", b"\0" * 16)])
    with pytest.raises(ValueError, match="a tensor is larger than its storage"):
        open_tensors(tmp_path / "a.pt")


def test_archives_that_torch_did_not_write_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")  # torch before 1.6
    with pytest.raises(ValueError, match=r"torch before 1.6 have another format"):
        open_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("something", "else")
    with pytest.raises(ValueError, match=r"not one of torch.save or torch.jit.save"):
        open_tensors(path)
    torch_archive(path, pickle.dumps({"epoch": 3}))
    with pytest.raises(ValueError, match="holds no tensors by name"):
        open_tensors(path)
    torch_archive(
        path, pickle.dumps({}), compression=zipfile.ZIP_DEFLATED, members=[("data/0", b"0" * 999)]
    )
    with pytest.raises(ValueError, match="compressed tensors"):
        open_tensors(path)
    torch_archive(path, pickle.dumps({}), members=[("byteorder", b"big")])
    with pytest.raises(ValueError, match="big-endian"):
        open_tensors(path)


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
    with pytest.raises(RuntimeError), files.whole(path) as part:
        part.mkdir()
        (part / "x").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with files.whole(path) as part:
        part.write_text("whole")
    with pytest.raises(FileExistsError, match="exists already"), files.whole(path):
        pass
    assert path.read_text() == "whole"


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
            files.whole(tmp_path / name) as part,
        ):
            WRITERS[name](part, {"x": (100_000,)}, tensors.items())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("x")
    told = pytest.raises(OSError, match=r"file/x cannot be written: .*are its parents directories")
    with told, files.whole(tmp_path / "file" / "x"):
        pass
    (tmp_path / "link").symlink_to("nowhere")
    with (
        pytest.raises(FileExistsError, match="link exists already"),
        files.whole(tmp_path / "link"),
    ):
        pass
