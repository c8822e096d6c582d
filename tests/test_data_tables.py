"""Tables: every kind gives the rows that were written, bad ones say why, paths stay inside."""

import csv
import io
import json
import os
import pickle

import numpy as np
import pyarrow as pa
import pytest
from data_files import CAPTIONS, NAMES, ROWS, WRITERS, write_csv, write_parquet, write_pictures
from emoji_data import flat
from pyarrow import parquet

from vlrep_jax.data.order import order
from vlrep_jax.data.sources.files import Files
from vlrep_jax.data.sources.parquet import ParquetRows
from vlrep_jax.data.sources.tables import STRIDE, CsvRows


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path)
    return tmp_path


def read(source):
    return source.__getitems__(range(len(source)))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_table_gives_what_was_written(kind, folder):
    path = WRITERS[kind](folder / f"t.{kind}")
    held = read(Files(path, key="id", labels={"size": "size"}, identity="caption"))
    assert [sample.captions for sample in held] == [(caption,) for caption in CAPTIONS]
    assert [sample.image for sample in held] == [flat(i) for i in range(3)]
    assert [sample.key for sample in held] == ["id0", "id1", "id2"]
    assert [sample.labels for sample in held] == [{"size": "8"}, {"size": "9"}, {"size": "10"}]
    assert [sample.identity for sample in held] == list(CAPTIONS)
    assert not any(sample.problem for sample in held)


def awkward_rows(rng, count):
    pieces = ["a", "é", ",", '"', "\n", "\r\n", "\r", "\t", " ", "", "\x85", "\u2028", "''", "\\"]
    word = lambda: "".join(rng.choice(pieces, rng.integers(0, 6)))  # noqa: E731
    return [[word(), word(), word()] for _ in range(count)]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_rows_by_number_are_those_that_the_csv_module_reads(line_end, bom, tmp_path):
    rng = np.random.default_rng(3)
    rows = awkward_rows(rng, 20 * STRIDE + 5)
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=line_end, quoting=csv.QUOTE_ALL).writerows(
        [["x", "y", "z"], *rows]
    )
    path = tmp_path / "t.csv"
    # Blank lines are no rows.
    path.write_bytes(bom + (line_end + out.getvalue() + line_end * 2).encode())
    table = CsvRows(str(path), ",")
    assert table.columns == ("x", "y", "z") and len(table) == len(rows)
    for numbers in (range(len(rows)), sorted(rng.integers(0, len(rows), 50).tolist())):
        assert table.rows(numbers, ()) == [
            dict(zip("xyz", rows[number], strict=True)) for number in numbers
        ]


def test_a_table_keeps_half_a_byte_a_row(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("image,caption\n" + "a.png,text\n" * 100_000)
    source = Files(path)
    assert len(source) == 100_000
    assert len(pickle.dumps(source)) < 60_000


def test_a_file_without_a_header_takes_the_given_one(folder):
    (folder / "t.tsv").write_text(f"words\t{NAMES[0]}\n")
    (sample,) = read(Files(folder / "t.tsv", header=("caption", "image")))
    assert sample.captions == ("words",) and sample.image == flat(0)


def test_other_delimiters_and_quotes_that_are_letters(folder):
    path = folder / "t.csv"
    path.write_text(f"image;caption\n{NAMES[0]};one\n")
    with pytest.raises(ValueError, match=r"\['image;caption'\]; set delimiter to what is between"):
        Files(path)
    assert [s.captions for s in read(Files(path, delimiter=";"))] == [("one",)]
    assert Files(path, delimiter=";").fingerprint() != (
        Files(path, delimiter=";", quotes=False).fingerprint()
    )
    table = folder / "t.tsv"
    table.write_text(f'image\tcaption\n{NAMES[0]}\t"one\n{NAMES[1]}\ttwo" and\n')
    assert len(Files(table)) == 1  # the csv module's: a field that goes on over the line
    captions = [s.captions for s in read(Files(table, quotes=False))]
    assert captions == [('"one',), ('two" and',)]
    with pytest.raises(ValueError, match="delimiter=';;' must be one letter"):
        Files(path, delimiter=";;")


def test_a_key_of_json_may_come_late_and_a_column_twice_is_refused(folder):
    path = folder / "t.jsonl"
    late = [{"image": NAMES[0]}] * 300 + [{"image": NAMES[0], "caption": "late"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in late))
    held = read(Files(path))
    assert [s.captions for s in held] == [()] * 300 + [("late",)]
    (folder / "t.csv").write_text("image,caption,caption\na,b,c\n")
    parquet.write_table(
        pa.table([pa.array(["x"])] * 3, ["image", "caption", "caption"]), folder / "t.parquet"
    )
    for name in ("t.csv", "t.parquet"):
        with pytest.raises(ValueError, match="has several columns 'caption'"):
            Files(folder / name)
    parquet.write_table(pa.table({}), folder / "none.parquet")
    with pytest.raises(ValueError, match=r"has no column 'image'; it has \[\]"):
        Files(folder / "none.parquet")


def test_several_captions_columns_lists_and_nested_ones(folder):
    rows = [
        {"image": NAMES[0], "a": "x", "b": ["y", "z"], "c": {"d": [{"t": "u"}, {"t": "v"}]}},
        {"image": NAMES[0], "a": None, "b": [], "c": None},
    ]
    for write, kind in ((WRITERS["jsonl"], "jsonl"), (WRITERS["parquet"], "parquet")):
        path = write(folder / f"t.{kind}", rows)
        full, bare = read(Files(path, captions=["a", "b", "c.d.t"]))
        assert full.captions == ("x", "y", "z", "u", "v") and bare.captions == ()


def test_parquet_holds_pictures_themselves(folder):
    rows = [
        {"image": flat(1), "struct": {"bytes": flat(2), "path": None}, "caption": "a"},
        {"image": None, "struct": {"bytes": None, "path": NAMES[0]}, "caption": "b"},
        {"image": b"", "struct": None, "caption": "c"},
    ]
    path = write_parquet(folder / "t.parquet", rows)
    by_bytes = read(Files(path, identity="image"))
    assert [(s.image, s.problem) for s in by_bytes] == [
        (flat(1), ""),
        (b"", "missing"),
        (b"", "missing"),
    ]
    by_struct = read(Files(path, image="struct", identity="image"))
    assert [s.image for s in by_struct] == [flat(2), flat(0), b""]
    assert len({by_bytes[0].identity, by_struct[0].identity, by_struct[1].identity}) == 3
    same = read(Files(WRITERS["csv"](folder / "t.csv"), identity="image"))
    assert same[0].identity == by_struct[1].identity != ""  # equal pictures, from anywhere


def test_several_files_stand_behind_each_other_under_keys_of_their_own(folder):
    for part in ("a", "b"):
        (folder / part).mkdir()
        write_csv(folder / part / "t.csv", ROWS[: 2 if part == "a" else 3])
    source = Files(str(folder / "*" / "t.csv"), root=str(folder))
    assert len(source) == 5
    assert [s.key for s in read(source)] == [f"a/t.csv:{i}" for i in range(2)] + [
        f"b/t.csv:{i}" for i in range(3)
    ]
    assert source.__getitems__([4, 0, 3, 0]) == [source[4], source[0], source[3], source[0]]
    assert source[4].captions == (CAPTIONS[2],)


@pytest.mark.parametrize(
    "name", ["../secret.png", "{top}/secret.png", "link.png", "dir/secret.png"]
)
def test_a_path_that_leads_outside_is_not_read(name, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(flat(9))
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in" / "dir").symlink_to(tmp_path)
    rows = [{"image": name.format(top=tmp_path), "caption": "x"}]
    path = write_csv(tmp_path / "in" / "t.csv", rows)
    (sample,) = read(Files(path))
    assert (sample.image, sample.problem) == (b"", "outside")
    root = "/" if name.startswith("{") else str(tmp_path)
    rows[0]["image"] = name.format(top=tmp_path).replace("../", "")
    if name not in ("link.png", "dir/secret.png"):
        (allowed,) = read(Files(write_csv(tmp_path / "in" / "t.csv", rows), root=root))
        assert allowed.image == flat(9)


def test_what_is_no_file_is_missing_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    names = ["none.png", "", "pipe", ".", "a\0b", "x" * 5000, "/dev/zero", "http://host/a.png"]
    path = WRITERS["jsonl"](tmp_path / "t.jsonl", [{"image": n, "caption": "x"} for n in names])
    problems = [sample.problem for sample in read(Files(path))]
    assert problems == ["missing"] * 6 + ["outside"] * 2
    assert read(Files(path, root="/"))[6].problem == "missing"


def test_bad_rows_say_why_and_leave_the_others(folder):
    good = f"{NAMES[0]},fine\n".encode()
    bad = b"too,many,fields\nfew\n" + NAMES[0].encode() + b",caf\xe9\n"
    (folder / "t.csv").write_bytes(b"image,caption\n" + good + bad + good)
    problems = ["", "columns", "columns", "not_utf8", ""]
    assert [s.problem for s in read(Files(folder / "t.csv"))] == problems
    lines = [{"image": NAMES[0], "caption": "fine"}, {"image": NAMES[0], "caption": 3}, {}]
    text = [json.dumps(line) for line in lines] + ["{", "[1]", "[" * 100_000, '"\\ud800"']
    text += ['{"image": "first.png", "caption": "\\ud800"}']
    data = "\n".join(text).encode() + b'\n{"caption": "caf\xe9"}\n'
    (folder / "t.jsonl").write_bytes(data)
    problems = ["", "not_text", "missing", *["json"] * 4, "not_utf8", "not_utf8"]
    assert [s.problem for s in read(Files(folder / "t.jsonl"))] == problems
    column = pa.array([b"fine", b"caf\xe9"]).view(pa.string())
    table = pa.table({"image": [NAMES[0]] * 2, "caption": column})
    parquet.write_table(table, folder / "t.parquet")
    assert [s.problem for s in read(Files(folder / "t.parquet"))] == ["", "not_utf8"]


def test_a_file_name_that_is_not_utf8_is_still_a_file(tmp_path):
    name = b"caf\xe9.png"
    with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
        file.write(flat(5))
    (tmp_path / "t.csv").write_bytes(b"image,caption\n" + name + b",text\n")
    (sample,) = read(Files(tmp_path / "t.csv", key="image"))
    assert sample.image == flat(5)
    sample.key.encode()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_wrong_column_lists_those_there_are(kind, folder):
    path = WRITERS[kind](folder / f"t.{kind}")
    with pytest.raises(
        ValueError, match=r"has no column 'text'; it has \['image', 'caption', 'id'"
    ):
        Files(path, captions="text")


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("t.csv", b"", "is empty; expected a row of column names"),
        ("t.csv", "image,caption\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("t.csv", b"\x1f\x8b\x08\x00", "is compressed"),
        ("t.csv", b'image,caption\n"' + b"x" * 200_000, r"at byte 14 \(.*field larger.*left open"),
        ("t.jsonl", b"", "no row that is a JSON object"),
        ("t.jsonl", b"[1]\n", "no row that is a JSON object"),
        ("t.parquet", b"PAR1 and more", "is no readable Parquet file"),
        ("t.json", b"[]", r"no table that is known.*one object a line"),
        ("t.xlsx", b"", r"no table that is known by its name: \['\.csv'"),
    ],
)
def test_what_is_no_table_ends_in_one_line(name, data, line, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=line) as error:
        Files(tmp_path / name)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path / "*.csv", "memory://none.csv"):
        with pytest.raises(FileNotFoundError, match=r"\.csv"):
            Files(str(path))


def test_a_table_that_changed_under_the_run_is_an_error(folder):
    path = write_csv(folder / "t.csv")
    source = Files(path)
    path.write_text("image,caption\n")
    with pytest.raises(ValueError, match="has changed since it was opened"):
        read(source)


def test_fingerprints_tell_content_and_columns_apart_but_not_places(folder):
    path = write_csv(folder / "t.csv")
    held = Files(path).fingerprint()
    assert Files(path, captions="id").fingerprint() != held
    moved = folder / "sub" / "t.csv"
    moved.write_bytes(path.read_bytes())
    assert Files(moved).fingerprint() == held
    path.write_bytes(path.read_bytes().replace(b"one", b"two"))
    assert Files(path).fingerprint() != held


def test_tables_and_pictures_may_lie_behind_a_url(folder):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in (*NAMES, "t.csv", "t.parquet"):
        local = folder / name
        if name.startswith("t."):
            WRITERS[name[2:]](local)
        memory.pipe_file(f"/set/{name}", local.read_bytes())
    for kind in ("csv", "parquet"):
        source = Files(f"memory://set/t.{kind}")
        assert [s.image for s in read(source)] == [flat(i) for i in range(3)]
        assert read(pickle.loads(pickle.dumps(source))) == read(source)
    memory.pipe_file("/secret.png", flat(1))
    memory.pipe_file("/set/bad.csv", b"image,caption\n../secret.png,x\nmemory://secret.png,x\n")
    assert [s.problem for s in read(Files("memory://set/bad.csv"))] == ["outside"] * 2
    assert len(Files("memory://set/*.parquet")) == 3


def test_parquet_is_seen_whole_each_epoch_by_few_row_groups_at_a_time(folder, monkeypatch):
    rows = [{"image": NAMES[0], "caption": str(i)} for i in range(100)]
    write_parquet(folder / "a.parquet", rows[:53], row_group_size=10)
    write_parquet(folder / "b.parquet", rows[53:], row_group_size=10)
    source = Files(str(folder / "*.parquet"), window=20)
    assert source.blocks().tolist() == [10] * 5 + [3] + [10] * 4 + [7]
    stream = order(source, 7)
    epochs = np.array([[stream[e * 100 + i] for i in range(100)] for e in range(3)])
    for epoch in epochs:
        assert sorted(epoch) == list(range(100))
        groups = np.searchsorted(np.cumsum(source.blocks()), epoch, side="right")
        assert max(len(set(window)) for window in groups.reshape(5, 20)) <= 5
        assert (np.diff(epoch) != 1).sum() > 80  # shuffled within the windows
    first_windows = {tuple(sorted(epoch[:20])) for epoch in epochs}
    assert len(first_windows) > 1  # the row groups come in another order each epoch
    assert stream[250] == order(source, 7)[250]
    read_groups = []
    file_read = parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        parquet.ParquetFile,
        "read_row_group",
        lambda self, group, **k: read_groups.append(group) or file_read(self, group, **k),
    )
    for start in range(0, 100, 5):
        batch = source.__getitems__([stream[start + i] for i in range(5)])
        assert [s.captions[0] for s in batch] == [str(stream[start + i]) for i in range(5)]
    assert len(read_groups) <= 11  # each group once


def test_a_broken_row_group_is_counted(folder):
    rows = [{"image": NAMES[0], "caption": "x" * 50 + str(i)} for i in range(20)]
    path = write_parquet(folder / "t.parquet", rows, row_group_size=10, compression="snappy")
    start = parquet.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 60] = b"\xff" * 60
    path.write_bytes(data)
    problems = [s.problem for s in read(Files(path))]
    assert set(problems[:10]) == {"corrupt"} and set(problems[10:]) == {""}


def test_keys_are_hashed_without_reading_pictures(folder):
    path = write_csv(folder / "t.csv")
    from vlrep_jax.data.sources.sample import key_hashes

    for source in (Files(path), Files(path, key="id")):
        expected = key_hashes(sample.key for sample in read(source))
        for name in NAMES:
            (folder / name).rename(folder / "gone.png")
            np.testing.assert_array_equal(source.key_hashes(), expected)
            (folder / "gone.png").rename(folder / name)


def test_row_groups_that_many_columns_have_are_kept_by_column(folder):
    path = write_parquet(folder / "t.parquet")
    table = ParquetRows(str(path))
    assert table.rows([0], ("id",)) == [{"id": "id0"}]
    assert table.rows([0], ("size",)) == [{"size": "8"}]
