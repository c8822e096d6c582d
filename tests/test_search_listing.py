"""Which pictures a pattern stands for, and reading them."""

import errno
import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from searching import draw

from vlrep_jax.data.decoding import BadImage
from vlrep_jax.search.listing import find_pictures, read


def found(*patterns):
    pictures, problems = find_pictures([str(pattern) for pattern in patterns])
    assert not problems
    return pictures


@pytest.fixture
def folder(tmp_path):
    top = tmp_path / "photos"
    for name in ("b.PNG", "a.jpg", "deep/er/c.webp", ".hidden.png", ".thumbs/d.png", "e[1].png"):
        draw(top / name, 0)
    (top / "notes.txt").write_text("no picture")
    os.symlink(top / "nowhere.png", top / "broken.png")
    os.mkfifo(top / "pipe.png")
    return top


def test_a_folder_stands_for_its_pictures_at_any_depth(folder):
    names = [os.path.relpath(picture.name, folder) for picture in found(folder)]
    assert names == ["a.jpg", "b.PNG", "deep/er/c.webp", "e[1].png"]
    picture = found(folder)[0]
    assert picture.size == os.path.getsize(folder / "a.jpg") and picture.file == picture.name


def test_a_pattern_or_a_file_is_taken_whatever_its_ending(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert [p.name for p in found("*.t?t")] == [str(folder / "notes.txt")]
    assert [p.name for p in found("e[1].png")] == [str(folder / "e[1].png")]
    deep = [os.path.basename(p.name) for p in found("**/*.webp")]
    assert deep == ["c.webp"]
    # What two patterns stand for is there once.
    assert len(found(folder, "a.*", "notes.txt", folder / "notes.txt")) == 5


def test_nothing_found_is_an_error(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for pattern in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "*.png", folder / "pipe*"):
        with pytest.raises(FileNotFoundError, match="stands for no picture"):
            find_pictures([str(folder), str(pattern)])


def test_what_cannot_be_looked_at_is_not_gone(folder, monkeypatch):
    scandir, stat = os.scandir, os.stat

    def denied(of, path):
        if str(path).endswith(of):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", lambda path: denied("er", path) or scandir(path))
    with pytest.raises(OSError, match=r"deep/er cannot be looked at \(Permission denied\)"):
        found(folder)
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "stat", lambda path, **_: denied("a.jpg", path) or stat(path, **_))
    with pytest.raises(OSError, match=r"a\.jpg cannot be looked at .*stays as it was"):
        found(folder)
    monkeypatch.undo()
    os.symlink("loop.png", folder / "loop.png")
    assert len(found(folder)) == 4
    with pytest.raises(FileNotFoundError, match=r"--images=tar:nope\.tar: There is no file"):
        find_pictures(["tar:nope.tar"])


def test_reading_gives_the_bytes_and_what_they_were(folder):
    for picture in found(folder):
        data, now = read(picture)
        assert now == picture and data == Path(picture.name).read_bytes()
    picture = found(folder / "a.jpg")[0]
    draw(folder / "a.jpg", 1)
    os.utime(folder / "a.jpg", ns=(1, 1))
    data, now = read(picture)
    assert now.stamp == "1" and now.size == len(data)
    os.unlink(folder / "a.jpg")
    with pytest.raises(FileNotFoundError):
        read(picture)
    os.mkfifo(folder / "a.jpg")
    with pytest.raises(BadImage, match="no ordinary file"):  # and does not wait for a writer
        read(picture)


@pytest.fixture
def archive(folder):
    path = folder.parent / "shard-000.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "b.PNG", "notes.txt"):
            tar.add(folder / name, f"set/{name}")
        link = tarfile.TarInfo("set/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        pipe = tarfile.TarInfo("../../outside.png")  # a name, which nothing is written to
        pipe.size = 4
        tar.addfile(pipe, io.BytesIO(b"data"))
    return path


def test_the_pictures_of_an_archive(archive, folder):
    pictures = found(f"tar:{archive.parent}/shard-{{000..000}}.tar")
    names = [picture.name.removeprefix(f"{archive}/") for picture in pictures]
    assert names == ["../../outside.png", "set/a.jpg", "set/b.PNG"]
    data, now = read(pictures[1])
    assert data == (folder / "a.jpg").read_bytes() and now == pictures[1]
    os.utime(archive, ns=(1, 1))
    with pytest.raises(BadImage, match="changed"):
        read(pictures[1])


def test_an_archive_that_is_cut_gives_what_lies_before(archive):
    whole, _ = find_pictures([f"tar:{archive}"])
    archive.write_bytes(archive.read_bytes()[: whole[2].place + 10])
    pictures, problems = find_pictures([f"tar:{archive}"])
    assert [p.name.rpartition("/")[2] for p in pictures] == ["a.jpg"]
    assert len(problems) == 1 and "shard-000.tar is damaged (truncated)" in problems[0]


def test_what_is_no_plain_archive_is_refused(archive, tmp_path):
    with open(archive, "rb") as plain, gzip.open(tmp_path / "shard.tar.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    with pytest.raises(ValueError, match=r"compressed \(gzip\).*gunzip"):
        find_pictures([f"tar:{tmp_path}/shard.tar.gz"])
    with pytest.raises(FileNotFoundError, match="no file"):
        find_pictures([f"tar:{tmp_path}/nowhere.tar"])
    with pytest.raises(ValueError, match="local files"):
        find_pictures(["tar:s3://bucket/shard.tar"])
