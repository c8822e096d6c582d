"""Data sets to evaluate on, from folders, tables, Karpathy's files and TFDS; files of names."""

import csv
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from emoji_data import ListSource, flat

from vlrep_jax.data.class_files import in_order, names_of, read_templates
from vlrep_jax.data.labelled import open_labelled
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.sources import Sample
from vlrep_jax.data.zero_shot_sets import of_files
from vlrep_jax.evals import class_sets
from vlrep_jax.evaluation import EvalData

PNG = flat(90)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PNG)


def keys(split):
    return [sample.key for sample in split.source.__getitems__(range(len(split.source)))]


def table(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_folder_of_classes_is_all_test(tmp_path):
    for name in (
        "b/1.png",
        "a/deep/2.PNG",
        "a/1.jpg",
        "a/.hidden.png",
        "a/notes.txt",
        ".git/x.png",
    ):
        picture(tmp_path / name)
    found = open_labelled(tmp_path)
    assert found.classes == ("a", "b") and list(found.splits) == ["test"]
    test = found.splits["test"]
    assert [key.removeprefix(f"{tmp_path}/") for key in keys(test)] == [
        "a/1.jpg",
        "a/deep/2.PNG",
        "b/1.png",
    ]
    assert test.labels.tolist() == [0, 0, 1] and test.captions == []
    assert test.source[0].image == PNG


def test_split_folders_are_splits_and_share_their_classes(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "validation/a/2.png", "test/b/3.png"):
        picture(tmp_path / name)
    found = open_labelled(tmp_path)
    assert found.classes == ("a", "b")
    assert {name: split.labels.tolist() for name, split in found.splits.items()} == {
        "train": [0, 1],
        "val": [0],
        "test": [1],
    }


def test_without_a_test_split_val_is_it_and_a_class_may_be_called_train(tmp_path):
    for name in ("train/a/1.png", "val/a/2.png"):
        picture(tmp_path / "two" / name)
    found = open_labelled(tmp_path / "two")
    assert set(found.splits) == {"train", "test"} and "val" in keys(found.splits["test"])[0]
    for name in ("train/1.png", "ship/1.png"):
        picture(tmp_path / "vehicles" / name)
    assert open_labelled(tmp_path / "vehicles").classes == ("ship", "train")


def test_rows_of_one_picture_are_its_captions(tmp_path):
    path = table(
        tmp_path / "pets.csv",
        [
            ("path", "label", "caption", "split"),
            ("a.png", "10", "a cat", "test"),
            ("a.png", "10", "one cat", "test"),
            ("b.png", "9", "", "test"),
            ("c.png", "", "no class", ""),
            ("a.png", "10", "trained on", "train"),
        ],
    )
    found = open_labelled(path)
    assert found.classes == ("9", "10")  # numbers by their size
    test = found.splits["test"]
    assert test.labels.tolist() == [1, 0, -1] and test.captions == ["a cat", "one cat", "no class"]
    assert test.image_of_caption.tolist() == [0, 0, 2]
    assert keys(test)[0] == str(tmp_path / "a.png") and len(found.splits["train"].source) == 1
    other = table(tmp_path / "other.tsv", [("image\tkind\ttext",), ("a.png\tcat\tone",)])
    found = open_labelled(other, label="kind", captions="text")
    assert found.classes == ("cat",) and found.splits["test"].captions == ["one"]


def test_karpathys_files_have_several_captions_a_picture(tmp_path):
    said = lambda *texts: [{"raw": text} for text in texts]  # noqa: E731
    rows = [
        {"filename": "1.jpg", "filepath": "val2014", "split": "test", "sentences": said("a", "b")},
        {"filename": "2.jpg", "split": "restval", "sentences": said("c")},
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": rows}))
    found = open_labelled(tmp_path / "dataset.json")
    assert found.classes == () and found.splits["train"].captions == ["c"]
    test = found.splits["test"]
    assert keys(test) == [str(tmp_path / "val2014/1.jpg")]
    assert test.captions == ["a", "b"] and test.image_of_caption.tolist() == [0, 0]


class Kinds(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    code_path = None

    def _info(self):
        names = tfds.features.ClassLabel(names=["zebra", "ant"])
        features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": names}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": flat(i), "label": i % 2}


def test_a_tfds_set_keeps_the_order_of_its_classes(tmp_path):
    Kinds(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    for what, options in ((tmp_path / "kinds", {}), ("tfds:kinds", {"data_dir": tmp_path})):
        found = open_labelled(what, **options)
        assert found.classes == ("zebra", "ant")
        assert found.splits["train"].labels.tolist() == [0, 1, 0]
        assert found.splits["test"].labels.tolist() == [0, 1]  # validation
        assert found.splits["test"].source[1].image[1:4] == b"PNG"
    with pytest.raises(ValueError, match="no column 'kind'"):
        open_labelled(tmp_path / "kinds", label="kind")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("path", "x"), ("a", "b")], "has the columns path, x; expected path, and label"),
        ([("path", "label"), ("a",)], "row 1 has not as many fields"),
        ([("path", "label"), ("a", "b"), ("a", "c")], "labelled 'c', and before 'b'"),
        ([("path", "label", "split"), ("a", "b", "dev2")], "split='dev2'; known: train"),
        ([("path", "label"), ("", "b")], "row 1 names no picture"),
        ([("path", "label")], "holds no picture"),
    ],
)
def test_tables_that_do_not_fit_say_where(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        open_labelled(table(tmp_path / "t.csv", rows))


def test_what_is_no_data_set_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "classes/a").mkdir(parents=True)
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "x.json").write_text('{"pictures": []}')
    for name in ("train", "val", "valid"):
        picture(tmp_path / "double" / name / "a/1.png")
    for name, error, message in (
        ("none", FileNotFoundError, "no such directory or file"),
        ("empty", ValueError, "no folder of a class"),
        ("classes", ValueError, "holds no picture"),
        ("x.txt", ValueError, "is no data set"),
        ("x.json", ValueError, "not as Karpathy's files are"),
        ("double", ValueError, "several folders that are val"),
    ):
        with pytest.raises(error, match=message):
            open_labelled(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="vlrep data prepare"):
        open_labelled("tfds:nothing", data_dir=tmp_path)


CLASSES = ("n01_cat", "n02")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("c.txt", "cat\n\n dog \n", [("cat",), ("dog",)]),
        ("c.txt", "n02\nn01_cat\n", [("n01_cat",), ("n02",)]),  # by label, in whatever order
        ("c.json", '["cat", ["dog", "hound"]]', [("cat",), ("dog", "hound")]),
        ("c.json", '{"n02": ["dog", "hound"], "n01_cat": "cat", "n03": "more"}', None),
    ],
)
def test_files_of_class_names(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert names_of(CLASSES, tmp_path / name) == (expected or [("cat",), ("dog", "hound")])


def test_without_a_file_labels_are_names():
    assert names_of(CLASSES) == [("n01 cat",), ("n02",)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "cat\n", "names 1 classes, but the data set has 2: n01_cat, n02"),
        ("c.txt", "n02\ncat\n", "no name for 1 classes: n01_cat"),
        ("c.json", '{"n02": "dog"}', "no name for 1 classes: n01_cat"),
        ("c.json", '{"n02": [], "n01_cat": "a"}', r"holds \[\]"),
        ("c.json", '["cat", 3]', "holds 3"),
        ("c.json", '["cat"', "is no JSON"),
        ("c.json", '"cat"', "a JSON list or mapping"),
        ("c.txt", " \n", "is empty"),
    ],
)
def test_files_of_class_names_that_do_not_fit(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        names_of(CLASSES, tmp_path / name)


def test_templates(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("a {}.\nthe {c}\n")
    assert read_templates(path) == ["a {}.", "the {}"]
    (tmp_path / "t.json").write_text('["an {}"]')
    assert read_templates(tmp_path / "t.json") == ["an {}"]
    path.write_text("a {}\nnothing\n")
    with pytest.raises(ValueError, match=r"'nothing' must hold .* exactly once"):
        read_templates(path)
    with pytest.raises(FileNotFoundError):
        read_templates(tmp_path / "none.txt")


def test_a_label_below_zero_is_none(tmp_path):
    path = table(tmp_path / "t.csv", [("path", "label"), ("a", ""), ("b", "x")])
    np.testing.assert_array_equal(open_labelled(path).splits["test"].labels, [-1, 0])


def test_classes_are_in_the_order_of_their_labels():
    assert in_order(["10", "9", "b"]) == ["10", "9", "b"]
    assert in_order(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert in_order(np.array([10, 9, -1])) == [-1, 9, 10]
    assert in_order(["--1", "²"]) == ["--1", "²"]


def test_numbered_classes_follow_a_file_of_names_however_they_come(tmp_path):
    labels = [str(i) for i in range(12)]
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name {i}\n" for i in labels))
    for label in labels:
        picture(tmp_path / "folder" / label / "1.png")
    rows = [("path", "label"), *((f"{label}.png", label) for label in reversed(labels))]
    for found in (
        open_labelled(table(tmp_path / "t.csv", rows)),
        open_labelled(tmp_path / "folder"),
    ):
        split, named = found.splits["test"], names_of(found.classes, names)
        tails = [key.removeprefix(f"{tmp_path}/").removeprefix("folder/") for key in keys(split)]
        own = [tail.split("/")[0].removesuffix(".png") for tail in tails]
        assert [named[i] for i in split.labels] == [(f"name {label}",) for label in own]
        assert sorted(own) == sorted(labels)
    for kind in (str, int):
        samples = [Sample(PNG, (), label, {"label": kind(label)}) for label in labels]
        found = of_files(ListSource(samples), classes=names)
        assert [found.class_names[i] for i in found.labels] == [(f"name {i}",) for i in labels]


def test_a_training_classifies_by_files_of_names_and_templates(tmp_path):
    (tmp_path / "names.json").write_text('{"n1": ["cat", "kitty"], "n2": "dog"}')
    (tmp_path / "templates.txt").write_text("a {}\n")
    labels = ["n2", None, "n1"]
    source = ListSource([Sample(PNG, (), str(i), {"kind": x}) for i, x in enumerate(labels)])
    data = EvalData(source, preprocess=Preprocess(8), batch_size=3)
    files = {"classes": tmp_path / "names.json", "templates": tmp_path / "templates.txt"}
    which = {"name": "pets", "label": "kind", **files}
    found = data.class_set(which)
    assert found.class_names == (("cat", "kitty"), ("dog",)) and found.templates == ("a {}",)
    assert found.labels.tolist() == [1, -1, 0]
    assert class_sets(["group", which]) == {"group": "group", "pets": which}
    for sets in ([{"label": "kind"}], ["a", "a"]):
        with pytest.raises(ValueError, match="needs one of its own"):
            class_sets(sets)
    with pytest.raises(ValueError, match="no label 'label'"):
        data.class_set({"name": "pets"})
