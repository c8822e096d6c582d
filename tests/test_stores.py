"""Patterns of shards, object stores, copies within a bound, and the order that goes with them."""

import contextlib
import io
import itertools
import os
import pickle
import threading
import time
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data_files import write_folder
from PIL import Image
from s3_server import s3  # noqa: F401, a fixture
from tars import shards

from vlrep_jax.data.caption_choice import CAPTIONS
from vlrep_jax.data.order import order as ordered
from vlrep_jax.data.order import windowed
from vlrep_jax.data.pipeline import train_batches
from vlrep_jax.data.sources import Tar, shard_cache, source_of, stores
from vlrep_jax.data.sources.folder import Folder
from vlrep_jax.data.sources.stores import braces, find
from vlrep_jax.data.tokenizers import train_bpe
from vlrep_jax.data.transforms import TRANSFORMS

TOKENIZER = train_bpe([f"number {i}" for i in range(100)], 300)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("x{,y}z", ["xz", "xyz"]),
        ("{a{1..2},b}c", ["a1c", "a2c", "bc"]),
        ("{only}", ["{only}"]),
        ("{p{1,2}}", ["{p1}", "{p2}"]),
    ],
)
def test_braces_expand_as_a_shell_does(pattern, names):
    assert braces(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("{0..9", "is not closed"),
        ("{0..99999999999}", "stands for 100,000,000,000 names"),
        ("{0..9999}{0..9999}", "stands for 100,000,000 names"),
    ],
)
def test_senseless_patterns_are_refused(pattern, line):
    with pytest.raises(ValueError, match=line):
        braces(pattern)


def test_missing_and_repeated_shards_are_named(tmp_path):
    shards(tmp_path, 3, 1)
    with pytest.raises(FileNotFoundError, match=r"003\.tar, .*004\.tar, .*005\.tar and 4 more"):
        find(f"{tmp_path}/{{000..009}}.tar")
    with pytest.raises(FileNotFoundError, match=r"\*\.tgz"):
        find(f"{tmp_path}/*.tgz")
    with pytest.raises(ValueError, match=r"001\.tar is named twice"):
        find([f"{tmp_path}/*.tar", f"{tmp_path}/001.tar"])
    with pytest.raises(ValueError, match="No file is named"):
        find("")
    assert len(find([f"file://{tmp_path}/00[01].tar", tmp_path / "002.tar"])) == 3


def test_a_protocol_without_its_package_says_what_to_install(monkeypatch):
    def missing(url, **options):
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ModuleNotFoundError, match=r"gs:// needs .*pip install fsspec gcsfs"):
        find("gs://bucket/a.tar")


@pytest.fixture(params=["memory", "s3"])
def stored(request, tmp_path, monkeypatch):
    """(pattern, options, fsspec file system, the same shards as a local source)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = shards(tmp_path / "shards", 6, 10)
    options = request.getfixturevalue("s3") if request.param == "s3" else {}
    store = fsspec.filesystem(request.param, **options)
    # A folder of its own for each test: memory:// and the server outlive them.
    folder = f"{'bucket/' if request.param == 's3' else '/'}{tmp_path.name}"
    store.makedirs(folder, exist_ok=True)
    for path in (tmp_path / "shards").glob("*.tar"):
        store.pipe_file(f"{folder}/{path.name}", path.read_bytes())
    pattern = f"{request.param}://{folder.lstrip('/')}/{{000..005}}.tar"
    return pattern, options, store, Tar(local)


def count_fetches(monkeypatch):
    fetched = []
    save = stores.Remote.save

    def counted(self, path, size):
        fetched.append(self.url)
        save(self, path, size)

    monkeypatch.setattr(stores.Remote, "save", counted)
    return fetched


def test_a_store_gives_what_the_files_give_and_is_fetched_once(stored, monkeypatch, tmp_path):
    pattern, options, _, local = stored
    fetched = count_fetches(monkeypatch)
    folder = str(tmp_path / "copies")
    source = Tar(pattern, storage_options=options, window=8, cache_dir=folder)
    everything = range(len(source))
    assert source.__getitems__(everything) == local.__getitems__(everything)
    assert pickle.loads(pickle.dumps(source)).__getitems__(everything) == local.__getitems__(
        everything
    )
    assert sorted(fetched) == sorted(set(fetched)) and len(fetched) == 6
    again = Tar(pattern.replace("{000..005}", "*"), storage_options=options, cache_dir=folder)
    assert again.__getitems__(everything) == local.__getitems__(everything)
    assert len(fetched) == 6  # the copies are those of the last run


def test_a_folder_of_a_store_gives_what_the_files_give(stored, tmp_path):
    pattern, options, store, _ = stored
    files = write_folder(tmp_path / "photos")
    (files / "alone.png").write_bytes(b"no text")
    (files / "sub-mine").mkdir()  # sorts before sub/ as a text, and behind it as a folder
    (files / "sub-mine" / "a.txt").write_text("no picture")
    url = pattern.replace("{000..005}.tar", "photos")
    for path in filter(Path.is_file, files.rglob("*")):
        store.pipe_file(f"{url}/{path.relative_to(files)}", path.read_bytes())
    local, remote = Folder(files), Folder(f"{url}/", storage_options=options)
    assert remote.__getitems__(range(3)) == local.__getitems__(range(3))
    assert remote.skipped == local.skipped == {"no_text": 1, "no_picture": 1}
    assert remote.fingerprint() == local.fingerprint() == Folder(f"file://{files}").fingerprint()
    assert source_of(url) == {"name": "folder", "path": url}
    store.rm_file(f"{url}/{remote[1].key}")
    assert [sample.problem for sample in remote.__getitems__(range(3))] == ["", "missing", ""]


def test_an_object_that_changed_or_vanished_is_counted(stored):
    pattern, options, store, local = stored
    source = Tar(pattern, storage_options=options)
    folder = pattern.partition("{")[0]
    data = store.cat_file(f"{folder}000.tar")
    store.pipe_file(f"{folder}000.tar", data.replace(b"number", b"nombre"))
    store.rm_file(f"{folder}001.tar")
    found = source.__getitems__(range(60))
    assert [s.problem for s in found[:20]] == ["changed"] * 10 + ["missing"] * 10
    assert found[20:] == local.__getitems__(range(20, 60))
    (tmp,) = [source._cache.folder]
    assert not [name for name in os.listdir(tmp) if name.endswith((".part", ".claim"))]


def copied(folder):
    """Bytes of the copies in a folder, those being made included."""
    total = 0
    for path in folder.glob("*.[sp]*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_copies_stay_within_their_bound(stored, tmp_path):
    pattern, options, _, local = stored
    largest = max(file.size for file in find(pattern, options))
    with pytest.raises(ValueError, match=f"at least {2 * largest:,}"):
        Tar(pattern, storage_options=options, cache_bytes=2 * largest - 1)
    source = Tar(pattern, storage_options=options, cache_bytes=2 * largest)
    folder = source._cache.folder
    order = ordered(source, 0)
    for position in range(0, 120):
        index = order[position]
        assert source[index] == local[index]
        assert copied(folder) <= 2 * largest
    del source, order
    for _ in range(100):  # a shard may still be on its way
        if not folder.exists():
            break
        time.sleep(0.1)
    assert not folder.exists()


def test_a_copy_that_goes_as_it_is_opened_is_still_read(stored, monkeypatch):
    """A fetch in the background makes room at that very moment."""
    pattern, options, _, local = stored
    source = Tar(pattern, storage_options=options)
    really = os.open

    def removed_behind(path, *more, **named):
        descriptor = really(path, *more, **named)
        if str(path).endswith(".shard"):
            os.unlink(path)
        return descriptor

    monkeypatch.setattr(os, "open", removed_behind)
    assert source[0] == local[0]


def test_a_store_that_is_down_stops_the_run_with_a_line(stored, monkeypatch):
    pattern, options, _, _ = stored
    source = Tar(pattern, storage_options=options)

    def down(self, *args, **kwargs):
        raise TimeoutError("no route")

    monkeypatch.setattr(stores.file_system(pattern, options), "cat_file", down)
    with pytest.raises(OSError, match=r"00\d\.tar cannot be read \(no route\)"):
        source.__getitems__([0])


def test_the_next_shards_are_read_ahead(stored, monkeypatch):
    pattern, options, _, _ = stored
    fetched = count_fetches(monkeypatch)
    source = Tar(pattern, storage_options=options, window=10)
    order = ordered(source, 3)
    first = order[0]
    for future in list(source._cache._asked.values()):
        future.result(timeout=20)
    assert len(fetched) == 2  # that of this window, and that of the next, though none was read
    assert f"{first // 10:03d}.tar" in fetched[0] + fetched[1]


def test_two_readers_of_one_folder_fetch_a_shard_once(stored, monkeypatch, tmp_path):
    pattern, options, _, local = stored
    fetched = count_fetches(monkeypatch)
    folder = str(tmp_path / "copies")
    sources = [Tar(pattern, storage_options=options, cache_dir=folder) for _ in range(3)]
    found = [None] * 3

    def read(number):
        found[number] = sources[number].__getitems__(range(60))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == [local.__getitems__(range(60))] * 3
    assert len(fetched) == 6


def test_what_died_while_fetching_is_cleared(tmp_path):
    cache = shard_cache.ShardCache(str(tmp_path), 100)
    (tmp_path / "x.part").write_bytes(bytes(90))
    os.utime(tmp_path / "x.part", (0, 0))
    cache._make_room(50)
    assert not os.listdir(tmp_path)


def test_a_copy_waits_for_room_and_says_when_there_is_none(tmp_path, monkeypatch):
    cache = shard_cache.ShardCache(str(tmp_path), 100)
    (tmp_path / "other.part").write_bytes(bytes(90))
    monkeypatch.setattr(shard_cache, "_PATIENCE_S", 0.2)
    with pytest.raises(OSError, match="no room for a shard of 50 bytes within cache_bytes=100"):
        cache._reserve(tmp_path / "own.part", 50)
    assert not (tmp_path / "own.part").exists()
    (tmp_path / "other.part").rename(tmp_path / "other.shard")
    cache._reserve(tmp_path / "own.part", 50)
    assert not (tmp_path / "other.shard").exists() and copied(tmp_path) == 50


def batches(source, hosts=1, host=0, **changed):
    options = {
        "transform": partial(TRANSFORMS["squash"], size=4),
        "caption": CAPTIONS["first"],
        "tokenizer": TOKENIZER,
        "context_length": 16,
        "batch_size": 8,
        "seed": 5,
    } | changed
    return train_batches(source, process_index=host, process_count=hosts, **options)


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("lanes", [1, 4])
def test_hosts_and_resuming_change_no_batch(lanes, hosts, tmp_path):
    source = Tar(shards(tmp_path, 5, 7), window=6, lanes=lanes)
    whole = list(itertools.islice(batches(source), 12))
    assert not np.concatenate([b["bad"] for b in whole]).any()
    parts = [list(itertools.islice(batches(source, hosts, host), 12)) for host in range(hosts)]
    resumed = batches(source)
    resumed.restore(resumed.state() | {"next_batch": 9})
    for number, batch in enumerate(whole):
        rows = [part[number] for part in parts]
        for name, array in batch.items():
            np.testing.assert_array_equal(np.concatenate([r[name] for r in rows]), array)
    for batch, again in zip(whole[9:], resumed, strict=False):
        np.testing.assert_array_equal(batch["image"], again["image"])


@pytest.mark.parametrize(
    ("counts", "window", "lanes", "batch_size"),
    [
        ([5, 3, 0, 9], 4, 1, 1),
        ([5, 3, 0, 9], 100, 1, 7),
        ([5, 3, 9, 7], 2, 4, 8),
        ([13] * 10, 7, 2, 12),
        ([1], 3, 2, 4),
        ([40, 1], 1, 1, 1),
    ],
)
def test_every_epoch_has_every_sample_once(counts, window, lanes, batch_size):
    make = partial(windowed, counts, window, lanes=lanes, batch_size=batch_size)
    size = sum(counts)
    seen = [make(seed=3)[place] for place in range(5 * size)]
    for epoch in range(5):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))
    anywhere = pickle.loads(pickle.dumps(make(seed=3)))
    assert [anywhere[place] for place in reversed(range(5 * size))] == seen[::-1]
    assert size == 1 or [make(seed=4)[place] for place in range(5 * size)] != seen


def test_shards_are_read_one_after_the_other_and_mixed_within_a_window():
    order = windowed([100] * 50, 25, seed=1)
    seen = np.asarray([order[place] for place in range(5000)])
    runs = seen.reshape(50, 100) // 100
    assert all(len(set(run)) == 1 for run in runs) and len(set(runs[:, 0])) == 50
    assert (runs[:-1, 0] + 1 != runs[1:, 0]).any()
    steps = np.abs(np.diff(seen[:25]))
    assert sorted(seen[:25]) == list(range(seen[:25].min(), seen[:25].min() + 25))
    assert steps.max() > 1
    second = np.asarray([order[place] for place in range(5000, 10000)])
    assert (second // 100 != seen // 100).any()


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_host_reads_only_its_lanes_shards(hosts):
    order = windowed([100] * 40, 50, seed=1, lanes=4, batch_size=80)
    rows = np.asarray([order[place] for place in range(4000)]).reshape(50, hosts, -1)
    read = [set((rows[:, host] // 100).ravel()) for host in range(hosts)]
    assert [len(own) for own in read] == [40 // hosts] * hosts
    assert set.union(*read) == set(range(40))


def test_orders_that_cannot_be_dealt_are_refused(tmp_path):
    with pytest.raises(ValueError, match="lanes=3 must divide batch_size=8"):
        windowed([5], 2, 0, lanes=3, batch_size=8)
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        windowed([5], 0, 0)
    pattern = shards(tmp_path, 1, 2)
    with pytest.raises(ValueError, match="lanes=2 needs a window"):
        Tar(pattern, lanes=2)
    assert Tar(pattern, window=2).fingerprint() != Tar(pattern).fingerprint()


def test_pictures_of_a_windowed_local_source_belong_to_their_captions(tmp_path):
    source = Tar(shards(tmp_path, 4, 5), window=3)
    for found in source.__getitems__(range(20)):
        grey = np.asarray(Image.open(io.BytesIO(found.image)))[0, 0, 0]
        assert found.captions == (f"number {grey}",)
