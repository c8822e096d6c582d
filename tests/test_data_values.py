"""What stands in other people's JSON and tables: read alike by every source, and never a crash."""

import json

import numpy as np
import pytest
from emoji_data import flat
from tars import archive, entry
from test_data_pipeline import batches, taken

from vlrep_jax.data.preparing import write_array_record
from vlrep_jax.data.sources.sections import open_section
from vlrep_jax.data.sources.values import json_object

NESTED = b"[" * 900 + b'"x"' + b"]" * 900
# What a JSON object holds -> (captions, or the reason that the sample is bad).
OBJECTS = {
    b'{"c": "one"}': ("one",),
    b'{"c": [["a"], ["b", "c"], null]}': ("a", "b", "c"),
    b'{"c": 5}': "not_text",
    b'{"c": {"a": "b"}}': "not_text",
    b'{"c": "a\\ud800b"}': "not_utf8",
    b'{"c": "\xe9"}': "not_utf8",
    '{"c": "one"}'.encode("utf-16"): "not_utf8",
    b'{"c": ' + NESTED + b"}": "json",
    b'{"c": "one", "id": ' + NESTED + b"}": "json",
    b'{"c": ' + b"[" * 99_999: "json",
    b'{"c": ' + b"1" * 9999 + b"}": "json",
    b'[{"c": "one"}]': "json",
    b"": "json",
}
ODD = b'{"c": "one", "id": "\\ud800"}'
USED = {"captions": "c", "identity": "id", "labels": {"label": "id"}}


def in_tar(folder, member):
    entries = [entry("0.png", flat(0)), entry("0.json", member)]
    (folder / "0.tar").write_bytes(archive(entries))
    used = {"captions": "json.c", "identity": "json.id", "labels": {"label": "json.id"}}
    return {"name": "tar", "path": str(folder / "0.tar")} | used


def in_lines(folder, line):
    (folder / "0.png").write_bytes(flat(0))
    rows = b'{"image": "0.png", "id": "a", "c": "other"}\n'
    (folder / "t.jsonl").write_bytes(rows + line.replace(b"{", b'{"image": "0.png", ', 1) + b"\n")
    only = {"name": "files", "path": str(folder / "t.jsonl")} | USED
    return {"name": "subset", "source": only, "exclude": str(folder / "exclude")}


def in_folder(folder, text):
    (folder / "0.png").write_bytes(flat(0))
    (folder / "0.json").write_bytes(text)
    return {"name": "folder", "path": str(folder), "captions": "c"}


@pytest.fixture(params=[in_tar, in_lines, in_folder])
def put(request, tmp_path):
    (tmp_path / "exclude").write_text("t.jsonl:0\n")
    return lambda data: request.param(tmp_path, data)


@pytest.mark.parametrize("data", OBJECTS, ids=lambda data: data[:20].decode("latin-1"))
def test_every_source_takes_json_alike(data, put):
    if put(b"{}")["name"] == "subset" and (b"\n" in data or b"\0" in data or not data):
        pytest.skip("no line of a table")
    (found,) = open_section(put(data)).__getitems__([0])
    expected = OBJECTS[data]
    if isinstance(expected, str):
        assert (found.problem, found.image, found.captions) == (expected, b"", ())
    else:
        assert (found.problem, found.captions) == ("", expected)


def test_what_is_not_utf8_names_a_picture_all_the_same(put, tmp_path):
    section = put(ODD)
    made = batches(open_section(section))
    (batch,) = taken(made, 1)
    assert not batch["bad"].any() and len(set(batch["pair_ids"])) == 1
    _, left_out = write_array_record(open_section(section), str(tmp_path / "out"))
    assert not left_out


def test_names_in_other_encodings_stay_apart(tmp_path):
    (tmp_path / "x.png").write_bytes(flat(1))
    rows = b"".join(b"x.png,one,%s\n" % name for name in (b"\xe9", b"\xff", "é".encode()))
    (tmp_path / "t.csv").write_bytes(b"image,caption,id\n" + rows)
    section = {"name": "files", "path": str(tmp_path / "t.csv"), "identity": "id", "key": "id"}
    source = open_section(section | {"labels": {"label": "id"}})
    found = source.__getitems__(range(3))
    assert len({s.key for s in found}) == len({s.identity for s in found}) == 3
    (batch,) = taken(batches(source), 1)
    assert len(set(batch["pair_ids"])) == 3 and not batch["bad"].any()
    write_array_record(source, str(tmp_path / "out"))


@pytest.mark.parametrize("depth", [1, 62])
def test_depth_that_people_use_is_kept(depth):
    value = json.loads("[" * depth + "]" * depth)
    assert json_object(json.dumps({"a": value, "b": [[]] * 90}).encode())["a"] == value


def test_equal_pictures_in_a_tar_are_one_identity(tmp_path):
    entries = [m for n in range(3) for m in in_pair(n)]
    (tmp_path / "0.tar").write_bytes(archive(entries))
    section = {"name": "tar", "path": str(tmp_path / "0.tar"), "identity": "image"}
    (batch,) = taken(batches(open_section(section), batch_size=24), 1)
    assert len(np.unique(batch["pair_ids"])) == 2
    other = section | {"identity": ""}
    assert open_section(section).fingerprint() != open_section(other).fingerprint()


def in_pair(number):
    return entry(f"{number}.png", flat(number // 2)), entry(f"{number}.txt", b"text %d" % number)
