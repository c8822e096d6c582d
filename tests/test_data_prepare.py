"""`vlrep data prepare`: any source becomes ArrayRecord with the same samples, or one clear line."""

import sys

import pytest
from data_files import ROWS, write_csv, write_pictures
from emoji_data import ListSource, flat

from vlrep_jax import cli
from vlrep_jax.data import preparing
from vlrep_jax.data.sources import SOURCES, Sample, Tfds, source_of


def called(*argv):
    with pytest.raises(SystemExit) as exit:
        cli.main([str(word) for word in argv])
    return exit.value.code or 0


@pytest.fixture
def table(tmp_path):
    write_pictures(tmp_path)
    return write_csv(tmp_path / "t.csv", [*ROWS, ROWS[0] | {"image": "none.png"}])


def test_what_is_written_is_what_was_read(table, tmp_path, capsys):
    out = tmp_path / "sets" / "mine"
    options = ("--option=key=image", '--option=labels={"size": "size"}', "--option=identity=image")
    assert called("data", "prepare", f"--source={table}", f"--out={out}", *options) == 0
    line = capsys.readouterr().out
    assert line == f"Wrote 3 samples to {out}; left out: missing 1.\n"
    source = SOURCES["files"](table, key="image", labels={"size": "size"}, identity="image")
    fields = {"key": "key", "identity": "identity", "labels": {"size": "size"}}
    written = Tfds(**{k: v for k, v in source_of(out).items() if k != "name"}, **fields)
    assert list(written.__getitems__(range(3))) == source.__getitems__(range(3))
    assert [path.name for path in out.parent.iterdir()] == ["mine"]  # nothing else is left


def test_labels_keep_their_types(tmp_path):
    labels = {"n": 3, "x": 0.5, "t": "ü", "b": True}
    source = ListSource([Sample(flat(i), ("a", "b"), str(i), labels) for i in range(2)])
    path, left_out = preparing.write_array_record(source, tmp_path / "1 set!")
    assert not left_out
    (one, _) = Tfds(path, labels={name: name for name in labels}).__getitems__(range(2))
    assert one.labels == labels and one.captions == ("a", "b")


def test_a_builder_of_tfds_is_prepared_by_name(tmp_path, capsys):
    from test_data_sources import Nested  # registers itself

    assert called("data", "prepare", Nested.name, f"--data_dir={tmp_path}") == 0
    assert capsys.readouterr().out.endswith(f"Prepared {tmp_path}/nested/1.2.0.\n")
    assert (
        len(Tfds(dataset="nested", data_dir=tmp_path, image="picture", captions="meta.file")) == 3
    )


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "takes either NAME"),
        (["x", "--source=y"], "takes either NAME"),
        (["--source={table}"], "--source needs --out=DIR"),
        (["--source={table}", "--out={top}"], "is there already; name another"),
        (["--source={table}", "--out=o", "--data_dir=d"], "--data_dir is for NAME"),
        (["--source={table}", "--out=o", "--option=key"], "write --option=key=VALUE"),
        (["--source={table}", "--out=o", "--option=kee=x"], "no option 'kee': did you mean 'key'"),
        (["--source={table}", "--out=o", "--option=captions=x"], "has no column 'x'; it has"),
        (["--source={top}/none", "--out=o"], "there is no such file"),
        (["no_such_set"], "TFDS has no data set 'no_such_set'"),
        (["x", "--out=o"], "are for --source"),
        (["x", "--config.seed=1"], "takes no '--config.seed=1'"),
    ],
)
def test_mistakes_end_in_one_line(flags, line, table, tmp_path, capsys):
    words = [flag.format(table=table, top=tmp_path) for flag in flags]
    assert called("data", "prepare", *words) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("vlrep: error: ") and line in told


def test_an_unknown_flag_is_told_with_the_near_ones(capsys):
    assert called("data", "prepare", "--sorce=x") == 2
    assert "did you mean '--source'" in " ".join(capsys.readouterr().err.split())


def test_what_needs_tensorflow_says_so(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def needs(*args, **kwargs):
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "builder", needs)
    with pytest.raises(ModuleNotFoundError, match=r"tensorflow.*\[tfds-prepare\].*never does"):
        preparing.prepare_tfds("coco_captions", str(tmp_path))


def test_labels_that_cannot_be_written_are_named(tmp_path):
    for labels, line in (({"key": "x"}, "label 'key' cannot"), ({"l": (1, 2)}, r"\(1, 2\) is no")):
        source = ListSource([Sample(flat(1), ("a",), "1", labels)])
        with pytest.raises(ValueError, match=line):
            preparing.write_array_record(source, tmp_path / "o")
    mixed = [Sample(flat(1), ("a",), str(i), {"l": value}) for i, value in enumerate((1, "x"))]
    with pytest.raises(ValueError, match="label 'l' of 1 is 'x', but of 0 1"):
        preparing.write_array_record(ListSource(mixed), tmp_path / "o")
    bad = ListSource([Sample(b"", (), "1", {}, problem="missing")])
    with pytest.raises(ValueError, match=r"No sample can be written; left out: \{'missing': 1\}"):
        preparing.write_array_record(bad, tmp_path / "o")
    assert not list(tmp_path.iterdir())


def test_preparing_loads_no_tensorflow():
    assert "tensorflow" not in sys.modules
