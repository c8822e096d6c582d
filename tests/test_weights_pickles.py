"""Pickles in torch archives: tensors are read, and nothing else is made, called or changed."""

import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

from vlrep_jax.weights.tensors import open_tensors


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


def test_a_pickle_that_sets_a_key_twice_is_refused(tmp_path):
    twice = spelt("w") + spelt(1) + b"s" + spelt("w") + spelt(2) + b"s."
    ordered = asked_for("collections", "OrderedDict") + b")R"
    for empty in (b"}", ordered, b"(d", b"(" + spelt("w") + spelt(0) + b"d"):
        torch_archive(tmp_path / "a.pt", b"\x80\x02" + empty + twice)
        with pytest.raises(ValueError, match="it holds 'w' more than once"):
            open_tensors(tmp_path / "a.pt")


def test_a_small_pickle_cannot_fill_the_memory(tmp_path):
    """What it may call copies nothing, though it called it on a long list again and again."""
    long_list = b"\x80\x02](" + b"N" * 100_000 + b"eq\x00"
    for module, name in (
        ("torch", "Size"),
        ("torch", "FloatStorage"),
        ("collections", "OrderedDict"),
        ("torch.jit._pickle", "build_intlist"),
    ):
        again = (asked_for(module, name) + b"h\x00\x85R") * 400
        torch_archive(tmp_path / "a.pt", long_list + again + b".")
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"a\.pt: its archive cannot be read: "):
            open_tensors(tmp_path / "a.pt")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 30e6, name


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
