"""Tar shards: the index is what `tarfile` finds, bad members are counted, nothing stale is read."""

import gzip
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import tarfile
import time
from collections import Counter

import numpy as np
import pytest
from emoji_data import flat
from tars import archive, entry, found_by_tarfile, sample, shards

from vlrep_jax.data.sources import Tar, claims, tar_index
from vlrep_jax.data.sources.sample import key_hashes
from vlrep_jax.data.sources.tar_index import Index

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def one(folder, entries, form=tarfile.GNU_FORMAT, **options):
    """Tar of a single shard `a.tar`."""
    data = entries if isinstance(entries, bytes) else archive(entries, form)
    (folder / "a.tar").write_bytes(data)
    return Tar(folder / "a.tar", **options)


def index_of(folder):
    (path,) = folder.glob(".*.tarindex")
    return path


def random_entries(rng, form):
    """Samples of random sizes under names short, long and foreign, between other members."""
    entries = []
    for number in range(int(rng.integers(1, 12))):
        folder = rng.choice(["", "deep/", "d" * 70 + "/" + "e" * 60 + "/", "./", "a.b/"])
        key = f"{folder}{rng.choice(['x', 'ö', 'wörld ', '日本'])}{number}"
        if form != "ustar" and rng.random() < 0.4:
            key += "n" * int(rng.integers(90, 2000))
        if rng.random() < 0.3:
            entries.append(entry(f"{folder}dir{number}", type=tarfile.DIRTYPE))
        members = [("jpg", rng.bytes(rng.integers(0, 3000)))]
        members += [("txt", rng.bytes(rng.integers(0, 3000)).hex().encode())]
        members += [("cls", b"7")] if rng.random() < 0.5 else []
        rng.shuffle(members)
        entries += [entry(f"{key}.{extension}", data) for extension, data in members]
    return entries


@pytest.mark.parametrize("form", FORMATS)
def test_index_and_bytes_are_those_that_tarfile_finds(form, tmp_path):
    rng = np.random.default_rng(len(form))
    for turn in range(20):
        data = archive(random_entries(rng, form), FORMATS[form])
        folder = tmp_path / str(turn)
        folder.mkdir()
        source = one(folder, data, captions="txt")
        members = {name: body for name, _, body in found_by_tarfile(data)}
        pictures = {name[:-4]: body for name, body in members.items() if name.endswith(".jpg")}
        assert source.skipped == {} and len(source) == len(pictures)
        hashes = source.key_hashes()
        for found, hashed in zip(source.__getitems__(range(len(source))), hashes, strict=True):
            name = found.key.removeprefix("a.tar/")
            assert found.image == pictures[name]
            assert found.captions == (members[f"{name}.txt"].decode(),)
            assert hashed == key_hashes([found.key])[0]


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_archives_of_gnu_tar_the_program(form, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("0", "ünï", "n" * (40 if form in ("v7", "ustar") else 180)):
        (tmp_path / "in" / f"{name}.png").write_bytes(flat(len(name)))
        (tmp_path / "in" / f"{name}.txt").write_text(name)
    command = ["tar", "--sort=name", f"--format={form}", "-cf", tmp_path / "a.tar", "-C"]
    subprocess.run([*command, tmp_path / "in", "."], check=True)
    source = Tar(tmp_path / "a.tar")
    assert source.skipped == {} and len(source) == 3
    for found in source.__getitems__(range(3)):
        assert found.key == f"a.tar/./{found.captions[0]}"
        assert found.image == flat(len(found.captions[0]))


def test_members_that_are_no_files_or_lead_outside_are_counted(tmp_path):
    whole = sample("ok", 5)
    entries = [
        entry("README", b"text"),
        entry(".hidden.png", flat(1)),
        *sample("../up", 1),
        *sample("/etc/root", 1),
        *sample("a/../../b", 1),
        entry("link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("hard.png", type=tarfile.LNKTYPE, linkname="ok.png"),
        entry("null.png", type=tarfile.CHRTYPE),
        entry("pipe.png", type=tarfile.FIFOTYPE),
        *whole,
        entry("..fine/ok.png", flat(2)),
        entry("lonely.txt", b"no picture"),
        entry("mute.png", flat(3)),
        *sample("ok", 9),
    ]
    source = one(tmp_path, entries)
    assert source.skipped == {
        "no_extension": 2,
        "unsafe_name": 6,
        "link": 2,
        "device": 2,
        "no_caption": 2,
        "no_image": 1,
        "duplicate_key": 1,
    }
    (found,) = source.__getitems__([0])
    assert (found.key, found.image, found.captions) == ("a.tar/ok", flat(5), ("number 5",))
    assert sorted(os.listdir(tmp_path))[-1] == "a.tar" and len(os.listdir(tmp_path)) == 2


def test_the_first_of_the_asked_extensions_is_taken_and_repeats_are_counted(tmp_path):
    entries = [entry("k.png", flat(1)), entry("k.JPG", flat(2)), entry("k.png", flat(3))]
    entries += [entry("k.txt", b"one"), entry("k.txt", b"two")]
    source = one(tmp_path, entries, image=("jpg", "png"))
    assert source[0].image == flat(2) and source[0].captions == ("one",)
    assert source.skipped == {"duplicate_member": 1}
    assert Tar(tmp_path / "a.tar", image="png")[0].image == flat(1)


def test_a_member_that_would_fill_the_memory_is_left_out(tmp_path):
    big = tarfile.TarInfo("big.png")
    big.size = 2**29
    parts = [archive(sample("a", 1))[: 4 * 512], big.tobuf(), archive(sample("b", 2))]
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(parts[0] + parts[1])
        file.seek(big.size, os.SEEK_CUR)  # a hole: it takes no room on the disk
        file.write(parts[2])
    source = Tar(tmp_path / "a.tar")
    assert source.skipped == {"too_large": 1, "no_image": 1}
    assert [s.key for s in source.__getitems__([0, 1])] == ["a.tar/a", "a.tar/b"]


def test_a_cut_archive_gives_what_is_whole(tmp_path):
    data = archive(sample("a", 1) + sample("b", 2))
    places = {name: (offset, offset + len(body)) for name, offset, body in found_by_tarfile(data)}
    cuts = {
        places["b.txt"][1]: (2, {}),  # all there but the padding and the end mark
        places["b.txt"][1] - 1: (1, {"truncated": 1, "no_caption": 1}),
        places["b.txt"][0] - 1: (1, {"truncated": 1, "no_caption": 1}),  # within a header
        places["b.txt"][0] - 512: (1, {"no_caption": 1}),  # between two members
        places["b.png"][0] + 9: (1, {"truncated": 1}),
    }
    for number, (cut, (kept, skipped)) in enumerate(cuts.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        source = one(folder, data[:cut])
        assert (len(source), source.skipped) == (kept, skipped)
        assert source[0].captions == ("number 1",)


def test_an_archive_behind_the_end_of_another_is_counted(tmp_path):
    source = one(tmp_path, archive(sample("a", 1)) + archive(sample("b", 2)))
    assert len(source) == 1 and source.skipped == {"behind_end": 1}


def test_compressed_shards_are_refused_by_content(tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(archive(sample("a"))))
    with pytest.raises(ValueError, match=r"a\.tar is compressed \(gzip\).*gunzip"):
        Tar(tmp_path / "a.tar")


def test_bad_members_say_what_is_wrong_and_give_no_picture(tmp_path):
    fields = {"captions": "json.text", "identity": "json.id", "labels": {"n": "json.a.n"}}
    texts = ['{"text": ["x", "y"], "id": 7, "a": {"n": [1]}}', "{", "[" * 100_000, '{"a": 3}']
    entries = [m for i, text in enumerate(texts) for m in sample(str(i), json=text)]
    good, broken, deep, bare = one(tmp_path, entries, **fields).__getitems__(range(4))
    assert good.captions == ("x", "y") and good.identity == "7" and good.labels == {"n": (1,)}
    assert broken.problem == deep.problem == "json" and broken.image == b""
    assert bare.captions == () and bare.labels == {"n": None} and bare.identity == ""
    entries = [entry("k.png", flat(1)), entry("k.txt", b"\xff")]
    assert one(tmp_path, entries)[0].problem == "not_utf8"


def test_fields_outside_json_and_shards_without_samples_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'id' must be a field of the JSON member"):
        one(tmp_path, sample("a"), identity="id")
    with pytest.raises(ValueError, match=r"no whole sample \(left out: \{'no_caption': 1\}\)"):
        one(tmp_path, sample("a"), captions="caption")
    with pytest.raises(IndexError):
        one(tmp_path, sample("a"))[1]


def test_nothing_stale_is_ever_read(tmp_path):
    source = Tar(shards(tmp_path, 3, 4))
    before = source.__getitems__(range(12))
    other = archive([m for n in range(4) for m in sample(f"{n:05d}", n + 100)])
    (tmp_path / "000.tar").write_bytes(other)  # another time, the same size
    (tmp_path / "001.tar").unlink()
    fresh = pickle.loads(pickle.dumps(source))
    for reader in (source, fresh):
        now = reader.__getitems__(range(12))
        assert [s.problem for s in now[:4]] == ["changed"] * 4
        assert now[8:] == before[8:]
        assert all(s.image == b"" for s in now if s.problem)
    # What was open when it vanished is still what it was; who opens it now does not find it.
    assert source.__getitems__(range(4, 8)) == before[4:8]
    assert [s.problem for s in fresh.__getitems__(range(4, 8))] == ["missing"] * 4


def test_a_shard_of_the_same_size_and_time_is_still_not_mistaken(tmp_path):
    source = one(tmp_path, sample("a", 1))
    status = os.stat(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(archive(sample("b", 1)))
    os.utime(tmp_path / "a.tar", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source[0].problem == "changed"


def test_another_shard_of_the_same_size_is_another_pipeline(tmp_path):
    first = one(tmp_path, [*sample("a", 5), *sample("b", 6)]).fingerprint()
    assert one(tmp_path, [*sample("a", 5), *sample("c", 6)]).fingerprint() != first
    assert one(tmp_path, [*sample("a", 5), *sample("b", 6)]).fingerprint() == first


def test_only_changed_shards_are_indexed_again(tmp_path, caplog):
    pattern = f"{tmp_path}/*.tar"
    shards(tmp_path, 4, 3)
    first = Tar(pattern)
    (tmp_path / "002.tar").write_bytes(archive(sample("new", 1) + sample("newer", 2)))
    shutil.copy(tmp_path / "000.tar", tmp_path / "009.tar")
    with caplog.at_level(logging.INFO):
        second = Tar(pattern)
    assert "indexing 2 of 5 shards" in caplog.text
    assert [len(first), len(second)] == [12, 14]
    assert [s.key for s in second.__getitems__([6, 7])] == ["002.tar/new", "002.tar/newer"]
    assert first.fingerprint() != second.fingerprint()
    assert len(list(tmp_path.glob(".*.tarindex"))) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert Tar(pattern).fingerprint() == second.fingerprint()
    assert "indexing" not in caplog.text


@pytest.mark.parametrize("damage", ["empty", "cut", "flip", "text", "version", "foreign"])
def test_a_damaged_index_is_made_again(damage, tmp_path, caplog):
    pattern = shards(tmp_path, 2, 5)
    whole = Tar(pattern).__getitems__(range(10))
    good = index_of(tmp_path).read_bytes()
    damaged = bytearray(good)
    if damage == "flip":
        damaged[64 + 36 * 3 + 13] ^= 4
    elif damage == "text":
        damaged[-20] ^= 1
    elif damage == "version":
        damaged[8] += 1
    index_of(tmp_path).write_bytes(
        {"empty": b"", "cut": good[:-1], "foreign": b"#!/bin/sh\n" * 40}.get(damage, damaged)
    )
    with caplog.at_level(logging.WARNING):
        again = Tar(pattern)
    assert "the index is made again" in caplog.text
    assert index_of(tmp_path).read_bytes() == good
    assert again.__getitems__(range(10)) == whole


def test_damage_behind_the_checksum_still_gives_no_other_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "_CHECKED_BYTES", 0)
    monkeypatch.setattr(Index.__init__, "__kwdefaults__", {"checked_bytes": 0})
    pattern = shards(tmp_path, 1, 6)
    whole = Tar(pattern).__getitems__(range(6))
    data = bytearray(index_of(tmp_path).read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(64, 64 + 6 * 36, 25):
        data[place] ^= 1 << rng.integers(8)
    index_of(tmp_path).write_bytes(data)
    found = Tar(pattern).__getitems__(range(6))
    assert any(s.problem for s in found)
    for now, was in zip(found, whole, strict=True):
        assert now.problem or now.image == was.image


def test_a_read_only_folder_has_its_index_in_the_cache(tmp_path, monkeypatch, caplog):
    pattern = shards(tmp_path / "data", 2, 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with caplog.at_level(logging.INFO):
        assert len(Tar(pattern)) == 4
    assert not list((tmp_path / "data").glob(".*"))
    assert len(list((tmp_path / "cache" / "vlrep").glob("*.tarindex"))) == 1
    assert "cannot hold its index" in caplog.text
    assert len(Tar(pattern, index_dir=str(tmp_path / "own"))) == 4
    assert len(list((tmp_path / "own").glob("*.tarindex"))) == 1


def test_shards_may_be_moved_with_their_index(tmp_path, caplog):
    pattern = shards(tmp_path / "here", 2, 2)
    source = Tar(pattern)
    os.rename(tmp_path / "here", tmp_path / "there")
    with caplog.at_level(logging.INFO):
        moved = Tar(pattern.replace("/here/", "/there/"))
    assert "indexing" not in caplog.text
    assert moved.fingerprint() == source.fingerprint()


def _open_at_once(pattern, barrier, answers):
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("vlrep_jax").addHandler(handler)
    logging.getLogger("vlrep_jax").setLevel(logging.INFO)
    barrier.wait()
    source = Tar(pattern)
    built = sum(message.startswith("indexing") for message in records)
    answers.put((built, source.fingerprint(), [s.key for s in source.__getitems__([0, 99])]))


def test_of_many_processes_one_makes_the_index(tmp_path):
    pattern = shards(tmp_path, 8, 150)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    arguments = (pattern, barrier, answers)
    workers = [context.Process(target=_open_at_once, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(built for built, _, _ in found) == 1
    assert len({json.dumps(rest) for _, *rest in found}) == 1
    assert not [name for name in os.listdir(tmp_path) if name.endswith((".claim", ".part"))]


@pytest.mark.parametrize("owner", ["dead_here", "silent_elsewhere"])
def test_the_claim_of_one_who_died_is_taken_over(owner, tmp_path, monkeypatch):
    pattern = shards(tmp_path, 2, 3)
    Tar(pattern)
    path = index_of(tmp_path)
    path.unlink()
    dead = subprocess.Popen(["true"])
    dead.wait()
    about = {"host": claims.socket.gethostname(), "pid": dead.pid}
    if owner == "silent_elsewhere":
        about["host"] = "elsewhere"
        monkeypatch.setattr(claims, "_DEAD_S", 0.5)
    path.with_suffix(".claim").write_text(json.dumps(about))
    started = time.monotonic()
    assert len(Tar(pattern)) == 6
    assert time.monotonic() - started < 10
    assert not path.with_suffix(".claim").exists()


def test_workers_index_as_one_process_does_and_pass_errors_on(tmp_path):
    pattern = shards(tmp_path, 12, 5)
    alone = Tar(pattern, num_workers=1, index_dir=str(tmp_path / "one"))
    many = Tar(pattern, num_workers=3, index_dir=str(tmp_path / "many"))
    np.testing.assert_array_equal(alone._index.rows, many._index.rows)
    (tmp_path / "007.tar").write_bytes(gzip.compress(b"x"))
    with pytest.raises(ValueError, match=r"007\.tar is compressed"):
        Tar(pattern, num_workers=3)


def test_a_row_has_36_bytes(tmp_path):
    Tar(shards(tmp_path, 10, 100))
    size = index_of(tmp_path).stat().st_size
    assert size - 64 - 36 * 1000 < 80 * 10  # and a shard less than 80


def test_many_threads_share_few_open_files(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from vlrep_jax.data.sources import tar

    monkeypatch.setattr(tar, "_FILES", 2)
    source = Tar(shards(tmp_path, 8, 5))
    whole = source.__getitems__(range(40))
    before = len(os.listdir("/proc/self/fd"))
    orders = [np.random.default_rng(i).permutation(40) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for order, found in zip(orders, pool.map(source.__getitems__, orders), strict=True):
            assert found == [whole[i] for i in order]
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert Counter(s.problem for s in whole) == {"": 40}
