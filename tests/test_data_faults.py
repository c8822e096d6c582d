"""Files and stores that change, vanish, fail or lead astray while they are read."""

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import fsspec
import pytest
from data_files import CAPTIONS, NAMES, write_csv, write_jsonl, write_parquet, write_pictures
from emoji_data import flat
from tars import shards

from vlrep_jax.data.sources import Tar, claims, stores
from vlrep_jax.data.sources.files import Files
from vlrep_jax.data.sources.shard_cache import ShardCache
from vlrep_jax.data.sources.stores import StoreError, find

TESTS = Path(__file__).resolve().parent
LOCAL = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_text_of_the_same_length_that_changed_is_an_error(kind, tmp_path):
    path = LOCAL[kind](tmp_path / f"t.{kind}")
    source = Files(str(path))
    path.write_bytes(path.read_bytes().replace(b"first", b"FIRST"))
    with pytest.raises(ValueError, match="has changed since it was opened; start again"):
        source.__getitems__([0])


def test_row_groups_of_a_file_that_changed_or_vanished_are_counted(tmp_path):
    write_pictures(tmp_path)
    path = write_parquet(tmp_path / "t.parquet", row_group_size=1)
    source = Files(str(path))
    assert source[0].problem == ""
    write_parquet(path, row_group_size=1)
    assert [source[0].problem, source[1].problem] == ["", "changed"]  # what is held is sound
    path.unlink()
    assert source[2].problem == "missing"


def test_a_file_url_is_a_path_and_follows_no_link_out_of_its_root(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_pictures(folder)
    (tmp_path / "secret.png").write_bytes(flat(9))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["first.png", "link.png", f"file://{tmp_path}/secret.png", f"file://{folder}/first.png"]
    write_csv(folder / "t.csv", [{"image": name, "caption": "x"} for name in names])
    for options in ({}, {"root": f"file://{folder}"}, {"root": str(folder)}):
        for path in (f"{folder}/t.csv", f"file://{folder}/t.csv"):
            found = Files(path, **options).__getitems__(range(4))
            assert [s.problem for s in found] == ["", "outside", "outside", ""]


def test_a_set_of_file_urls_has_one_index_wherever_it_is_opened_from(tmp_path, monkeypatch):
    pattern = "file://" + shards(tmp_path / "set", 2, 2)
    for folder in ("/", tmp_path):
        monkeypatch.chdir(folder)
        Tar(pattern)
    assert len(list((tmp_path / "set").glob(".*.tarindex"))) == 1


def test_a_name_with_brackets_is_a_name_where_there_is_one(tmp_path):
    for name in ("a[1].csv", "a1.csv", "a2.csv"):
        (tmp_path / name).write_text("image,caption\n")
    assert [f.path for f in find(f"{tmp_path}/a[1].csv")] == [f"{tmp_path}/a[1].csv"]
    assert len(find(f"{tmp_path}/a[12].csv")) == 2


@pytest.fixture(params=LOCAL)
def remote(request, tmp_path):
    """A table of three pictures in a store, and that store."""
    write_pictures(tmp_path)
    path = LOCAL[request.param](tmp_path / f"t.{request.param}")
    memory = fsspec.filesystem("memory")
    for name in (*NAMES, path.name):
        memory.pipe_file(f"/{tmp_path.name}/{name}", (tmp_path / name).read_bytes())
    return f"memory://{tmp_path.name}/{path.name}", memory


def failing(monkeypatch, memory, name, times, error):
    """Has one method of a store fail so often; the calls made to it are counted."""
    calls, own = itertools.count(), getattr(memory, name)

    def fail(*args, **options):
        if next(calls) < times:
            raise error
        return own(*args, **options)

    monkeypatch.setattr(memory, name, fail)


@pytest.mark.parametrize("method", ["cat_file", "open"])
def test_a_store_that_recovers_changes_no_sample(method, remote, monkeypatch):
    url, memory = remote
    source = Files(url)
    failing(monkeypatch, memory, method, 2, TimeoutError("slow"))
    assert [s.captions[0] for s in source.__getitems__(range(3))] == list(CAPTIONS)


@pytest.mark.parametrize("method", ["info", "cat_file", "open"])
def test_a_store_that_stays_down_ends_the_run_and_replaces_no_sample(method, remote, monkeypatch):
    url, memory = remote
    source = Files(url)
    failing(monkeypatch, memory, method, 99, OSError(5, "500 Internal Server Error"))
    with pytest.raises(StoreError, match=r"cannot be read \(.*500 Internal Server Error\)"):
        source.__getitems__([0])
    monkeypatch.undo()
    assert source[0].problem == ""  # the failure was not kept


class Answered(Exception):
    """As of a web server."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = status


@pytest.mark.parametrize(
    "error", [FileNotFoundError("gone"), Answered(404), OSError(22, "no name"), ValueError("\\0")]
)
def test_a_picture_that_its_store_does_not_have_is_missing(error, remote, monkeypatch):
    url, memory = remote
    source = Files(url)
    failing(monkeypatch, memory, "open", 1, error)
    assert [s.problem for s in source.__getitems__(range(3))] == ["missing", "", ""]


def test_a_table_that_was_replaced_in_its_store_is_noticed(remote):
    url, memory = remote
    source = Files(url)
    memory.pipe_file(url, memory.cat_file(url))
    if url.endswith(".parquet"):
        assert {s.problem for s in source.__getitems__(range(3))} == {"changed"}
    else:
        with pytest.raises(ValueError, match="has changed since it was opened"):
            source.__getitems__([0])


def test_a_name_is_no_chain_of_urls(tmp_path):
    memory = fsspec.filesystem("memory")
    (tmp_path / "secret.png").write_bytes(flat(3))
    names = [f"x::file://{tmp_path}/secret.png", f"memory://chain/x::file://{tmp_path}/secret.png"]
    rows = "".join(f"{name},x\n" for name in names)
    memory.pipe_file("/chain/t.csv", f"image,caption\n{rows}".encode())
    found = Files("memory://chain/t.csv").__getitems__(range(2))
    assert all(s.problem in ("outside", "missing") and not s.image for s in found)


def test_a_parquet_file_in_a_store_is_read_by_few_requests(tmp_path, monkeypatch):
    rows = [{"image": b"x" * 4000, "caption": str(i), "other": "y" * 9000} for i in range(64)]
    path = write_parquet(tmp_path / "t.parquet", rows, row_group_size=32, compression="none")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/few/t.parquet", path.read_bytes())
    source, lengths = Files("memory://few/t.parquet"), []
    read = stores.Remote.read

    def counted(self, offset, length):
        lengths.append(length)
        return read(self, offset, length)

    monkeypatch.setattr(stores.Remote, "read", counted)
    assert [s.captions[0] for s in source.__getitems__(range(32))] == list(map(str, range(32)))
    assert len(lengths) <= 6 and sum(lengths) < 600_000, lengths  # the third column is not read


LOOK_AHEAD = """
import sys, time
sys.path[:0] = [{tests!r}]
import fsspec
from tars import shards
from vlrep_jax.data.order import order
from vlrep_jax.data.sources import Tar, claims, stores
pattern = shards({folder!r}, 8, 2)
for number in range(8):
    data = open(f"{folder}/{{number:03d}}.tar", "rb").read()
    fsspec.filesystem("memory").pipe_file(f"/ahead/{{number:03d}}.tar", data)
source = Tar("memory://ahead/*.tar", window=16, index_dir={folder!r})
stores.Remote.save = lambda *_: time.sleep(30)
order(source, 1)[0]
print(source._cache.folder, len(source._cache._asked), flush=True)
{then}
"""


def look_ahead(folder, then=""):
    """A process that reads shards ahead, which takes 30 s, and the folder of its copies."""
    program = LOOK_AHEAD.format(tests=str(TESTS), folder=str(folder), then=then)
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(TESTS.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    )
    copies, asked = process.stdout.readline().split()
    assert asked == "8"
    return process, Path(copies)


def test_a_program_does_not_wait_at_its_end_for_what_is_read_ahead(tmp_path):
    process, copies = look_ahead(tmp_path)
    with process:
        assert process.wait(timeout=20) == 0
    assert not copies.exists()


def test_the_next_program_removes_the_copies_of_one_that_was_killed(tmp_path, monkeypatch):
    killed, copies = look_ahead(tmp_path, "time.sleep(60)")
    with killed:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr(claims, "_FRESH_S", -1)
        other = ShardCache("", 100)
        assert copies.exists() and other.folder.exists()  # in use
        killed.kill()
        killed.wait()
        assert copies.exists()
        third = ShardCache("", 100)
        assert not copies.exists() and other.folder.exists() and third.folder.exists()


def test_an_index_begun_by_a_killed_process_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_FRESH_S", -1)
    pattern = shards(tmp_path, 2, 2)
    Tar(pattern)
    (index,) = tmp_path.glob(".*.tarindex")
    index.unlink()
    left, own = (Path(f"{index}.{name}.part") for name in ("left", "own"))
    left.touch()
    with own.open("wb") as file:
        claims.hold(file.fileno())
        Tar(pattern)
        assert own.exists() and not left.exists()


def test_a_claim_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(claims.os, "write", full)
    with (
        pytest.raises(OSError, match="No space left"),
        claims.claim(tmp_path / "x.claim", lambda: False, "tests"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_killed_fetch_has_begun_takes_no_room(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = {"host": socket.gethostname(), "pid": ended.pid}
    (tmp_path / "x.part").write_bytes(bytes(90))
    (tmp_path / "x.claim").write_text(json.dumps(owner))
    assert ShardCache(str(tmp_path), 100)._make_room(50)
    assert not (tmp_path / "x.part").exists()


FULL = """
import resource, sys
sys.path[:0] = [{tests!r}]
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
import fsspec
from vlrep_jax.data.sources import Tar
for name in ("000", "001"):
    data = open(f"{folder}/{{name}}.tar", "rb").read()
    fsspec.filesystem("memory").pipe_file(f"/full/{{name}}.tar", data)
try:
    source = Tar("memory://full/*.tar", index_dir="{folder}/index", cache_dir="{folder}/copies")
    source[0]
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("limit", [0, 40, 2000])
def test_a_full_disk_is_told_and_leaves_nothing(limit, tmp_path):
    shards(tmp_path, 2, 20)
    ran = subprocess.run(
        [sys.executable, "-c", FULL.format(tests=str(TESTS), folder=tmp_path, limit=limit)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
        timeout=60,
    )
    assert "File too large" in ran.stdout and not ran.stderr, ran
    left = [path.name for name in ("index", "copies") for path in (tmp_path / name).glob("*")]
    assert all(name.endswith(".tarindex") or name == "room.lock" for name in left), left
