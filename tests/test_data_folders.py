"""Folders of pictures with texts beside them, paths as people type them, and Tux Paint's stamps."""

import os
from pathlib import Path

import pytest
from data_files import CAPTIONS, NAMES, write_csv, write_folder, write_parquet, write_pictures
from emoji_data import flat

from vlrep_jax.data.decoding import decode
from vlrep_jax.data.sources import source_of
from vlrep_jax.data.sources.folder import Folder
from vlrep_jax.data.sources.sections import open_section

# Debian's package tuxpaint-stamps-default, installed or unpacked by `dpkg-deb -x`.
STAMPS = Path(os.environ.get("TUXPAINT_STAMPS", "/usr/share/tuxpaint/stamps"))


def read(source):
    return source.__getitems__(range(len(source)))


def test_each_picture_has_the_text_beside_it(tmp_path):
    held = read(Folder(write_folder(tmp_path)))
    assert [s.key for s in held] == list(NAMES)
    assert [s.captions for s in held] == [(caption,) for caption in CAPTIONS]
    assert [s.image for s in held] == [flat(i) for i in range(3)]


def test_lines_and_json_hold_several_captions(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(flat(1))
    (tmp_path / "a.txt").write_text("one\n\n two \r\nthree")
    (tmp_path / "b.json").write_text('{"info": {"texts": ["x", "y"]}}')
    one, many = read(Folder(tmp_path, captions="info.texts"))
    assert one.captions == ("one\n\n two \r\nthree",) and many.captions == ("x", "y")
    assert Folder(tmp_path, lines=True)[0].captions == ("one", "two", "three")
    assert Folder(tmp_path, captions="none")[1].captions == ()


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes(flat(1))
    top = write_folder(tmp_path / "in")
    (top / "alone.png").write_bytes(flat(1))
    (top / "alone.txt.bak").touch()
    (top / "words.txt").write_text("no picture")
    (top / "drawing.svg").write_text("<svg/>")
    (top / "drawing.txt").write_text("a drawing")
    (top / "sound.ogg").touch()
    (top / "link.png").symlink_to(outside)
    (top / "link.txt").write_text("a link")
    (top / "inner.png").symlink_to(top / NAMES[0])
    (top / "inner.txt").write_text("a link inside")
    (top / "up").symlink_to(tmp_path)  # a directory's link is not followed
    source = Folder(top)
    assert [s.key for s in read(source)] == sorted([*NAMES, "inner.png"])
    assert source.skipped == {"no_text": 1, "no_picture": 2, "svg": 1, "outside": 1}


def test_folders_may_lie_deeper_than_pythons_stack(tmp_path, monkeypatch):
    for folder in (tmp_path / "sub" / "sub", tmp_path / "sub-mine"):
        write_folder(folder)
    monkeypatch.chdir(tmp_path / "sub")
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    for name, data in (("z.png", flat(1)), ("z.txt", b"deep")):
        Path(name).write_bytes(data)
    try:
        keys = [sample.key for sample in read(Folder(tmp_path))]
    finally:
        os.unlink("z.png"), os.unlink("z.txt")
        for _ in range(1100):  # pytest would not get to its end
            os.chdir("..")
            os.rmdir("d")
    inner = [f"sub/{key}" for key in ("d/" * 1100 + "z.png", *(f"sub/{name}" for name in NAMES))]
    assert keys == [*inner, *(f"sub-mine/{name}" for name in NAMES)]


def test_bad_texts_and_vanished_files_say_why(tmp_path):
    top = write_folder(tmp_path)
    (top / NAMES[0]).with_suffix(".txt").write_bytes(b"caf\xe9")
    (top / NAMES[1]).with_suffix(".txt").unlink()
    (top / NAMES[1]).with_suffix(".json").write_text("{")
    source = Folder(top)
    assert [s.problem for s in read(source)] == ["not_utf8", "json", ""]
    (top / NAMES[2]).unlink()
    os.symlink("/etc/passwd", top / NAMES[2])
    assert source[2].problem == "outside" and source[2].image == b""


def test_fingerprint_tells_pictures_and_options_apart(tmp_path):
    top = write_folder(tmp_path)
    held = Folder(top).fingerprint()
    assert Folder(top, lines=True).fingerprint() != held
    (top / NAMES[0]).write_bytes(flat(0) + b" ")
    assert Folder(top).fingerprint() != held


def test_folders_without_pairs_and_odd_options_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        Folder(tmp_path / "none")
    write_pictures(tmp_path)
    with pytest.raises(ValueError, match=r"no picture .* left out: \{'no_text': 3\}"):
        Folder(tmp_path)
    write_folder(tmp_path)
    with pytest.raises(ValueError, match="identity='text' must be"):
        Folder(tmp_path, identity="text")
    with pytest.raises(ValueError, match="lines=True does not go with"):
        Folder(tmp_path, lines=True, language="de")


STAMP = """A US penny.
de.utf8=Ein US-Penny.
pt_BR.utf8=Um centavo.
ku.utf8=
not a translation
"""


@pytest.mark.parametrize(
    ("language", "captions"),
    [
        ("en", ("A US penny.",)),
        ("de", ("Ein US-Penny.",)),
        (("pt_BR", "en", "xx"), ("Um centavo.", "A US penny.")),
        ("ku", ()),
        ("", (STAMP.strip(),)),
    ],
)
def test_stamps_speak_the_language_asked_for(language, captions, tmp_path):
    (tmp_path / "a.png").write_bytes(flat(1))
    (tmp_path / "a.txt").write_text(STAMP)
    assert Folder(tmp_path, language=language)[0].captions == captions


def test_stamps_without_a_language_are_pointed_out(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(flat(1))
    (tmp_path / "a.txt").write_text("A bear.\nde.utf8=Ein Bär.\n")
    assert not Folder(tmp_path, language="de").skipped and not caplog.records
    Folder(tmp_path)
    assert "language='en' takes one" in caplog.text


@pytest.mark.skipif(not STAMPS.is_dir(), reason=f"{STAMPS}: apt install tuxpaint-stamps-default")
def test_tux_paints_stamps_as_they_lie_on_disk():
    """Counted by find and comm in version 2022.06.04 of the package."""
    source = Folder(STAMPS, language="en", identity="image")
    assert len(source) == 785
    assert source.skipped == {"no_text": 11, "no_picture": 2, "svg": 248}
    held = read(source)
    assert not any(sample.problem for sample in held)
    by_key = {sample.key: sample for sample in held}
    penny = "symbols/money/us/coins/025quarter.png"
    assert by_key[penny].captions == ("A US 25 cent piece ($.25) called a quarter.",)
    assert all(len(sample.captions) == 1 for sample in held)
    german = {s.key: s.captions for s in read(Folder(STAMPS, language="de"))}
    assert sum(map(bool, german.values())) >= 784
    assert decode(held[0].image).ndim == 3


def test_a_path_as_typed_becomes_a_section(tmp_path):
    top = write_folder(tmp_path / "pairs")
    assert source_of(top, lines=True) == {"name": "folder", "path": str(top), "lines": True}
    table = str(write_csv(tmp_path / "pairs" / "t.csv"))
    assert source_of(table, captions="id") == {"name": "files", "path": table, "captions": "id"}
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    write_parquet(parquet / "part-0.parquet")
    assert source_of(parquet) == {"name": "files", "path": str(parquet / "*.parquet")}
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "0.tar").touch()
    assert source_of(shards) == {"name": "tar", "path": str(shards / "*.tar")}
    for pattern in ("s3://bucket/{00..12}.tar", "/data/*.tar"):
        assert source_of(pattern) == {"name": "tar", "path": pattern}
    for below in ("", "1.0.0", "default/1.0.0"):
        prepared = tmp_path / f"tfds{len(below)}"
        (prepared / below).mkdir(parents=True)
        (prepared / below / "dataset_info.json").touch()
        found = source_of(prepared)
        assert found == {"name": "tfds", "path": str(prepared), "split": "train"}
    assert len(open_section(source_of(top))) == 3


def test_a_path_that_nothing_reads_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        source_of(tmp_path / "none")
    (tmp_path / "notes.doc").touch()
    with pytest.raises(ValueError, match=r"nothing that a source reads.*\.parquet"):
        source_of(tmp_path / "notes.doc")
    with pytest.raises(ValueError, match=r"holds no TFDS .*It has: \['notes\.doc'\]"):
        source_of(tmp_path)
    for name in ("shards/{000..123}.tar.gz", "s3://bucket/t.csv.gz"):
        with pytest.raises(ValueError, match=r"is compressed, .* unpack it once"):
            source_of(name)
    with pytest.raises(ValueError, match="a URL has to end in"):
        source_of("s3://bucket/data.doc")
    write_pictures(tmp_path)
    write_csv(tmp_path / "t.csv")
    with pytest.raises(ValueError, match=r"name the table, .*t\.csv"):
        source_of(tmp_path)
