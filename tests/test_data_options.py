"""Wrong options of sources as a newcomer sets them: one clear line, never a traceback."""

import inspect
import json
from pathlib import Path

import pytest
from data_files import write_csv, write_folder, write_pictures
from tars import shards
from test_cli import fails, train  # noqa: F401, a fixture

from vlrep_jax.build import build, check_types
from vlrep_jax.data.order import order
from vlrep_jax.data.preparing import write_array_record
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.data.sources.sections import open_section
from vlrep_jax.exits import USER_ERRORS

VALUES = [None, 5, -1, 0, 2.5, float("nan"), "abc", "", True, b"x", [], ["x"], [5], {}, {"a": 1}]
NO_TEXT = {"path": 5, "captions": 5, "image": 5, "key": 5, "identity": ["x"], "labels": "x"}
# Of each source, options whose every value below is of a wrong type.
WRONG = {
    "files": NO_TEXT
    | {
        "root": 5,
        "header": "a,b",
        "delimiter": 5,
        "quotes": "no",
        "window": "9",
        "storage_options": "x",
    },
    "folder": {"path": 5, "captions": 5, "lines": 1, "language": 5, "identity": True}
    | {"storage_options": "x"},
    "mixture": {"parts": []},
    "subset": {"source": "x", "share": "0.1", "part": 1, "salt": 1, "exclude": 1, "first": 0.5},
    "tar": {option: value for option, value in NO_TEXT.items() if option != "key"}
    | {"index_dir": 1, "window": "9", "lanes": 2.0, "cache_bytes": "1", "path": {}},
    "tfds": NO_TEXT | {"split": 1, "dataset": 1, "data_dir": 1},
    "emoji_captions": {"data_dir": 1, "split": 1, "twemoji_repeats": "2"},
    "emoji_questions": {"data_dir": 1, "split": 1},
    "moving": {"source": "x", "frames": "8", "side": 2.5},
    "vqa": {"questions": 5, "images": 5, "annotations": 5, "image": 5},
}


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    """A good section of each source."""
    folder = tmp_path_factory.mktemp("options")
    write_pictures(folder)
    table = {"name": "files", "path": str(write_csv(folder / "t.csv"))}
    write_array_record(open_section(table | {"key": "id"}), str(folder / "prepared"))
    (folder / "photos").mkdir()
    made = [
        table,
        {"name": "folder", "path": str(write_folder(folder / "photos"))},
        {"name": "mixture", "parts": {"a": {"source": table, "weight": 1}}},
        {"name": "subset", "source": table, "share": 0.1},
        {"name": "tar", "path": shards(folder / "shards", 2, 4)},
        {"name": "tfds", "path": str(folder / "prepared")},
        {"name": "emoji_captions", "data_dir": str(folder / "none"), "split": "train"},
        {"name": "emoji_questions", "data_dir": str(folder / "none"), "split": "train"},
        {"name": "moving", "source": table},
        {"name": "vqa", "questions": str(_questions(folder)), "images": str(folder)},
    ]
    return {section["name"]: section for section in made}


def _questions(folder):
    asked = {"question_id": 1, "image_id": 1, "question": "what is this?"}
    (folder / "questions.json").write_text(
        json.dumps({"data_subtype": "val", "questions": [asked]}), encoding="utf-8"
    )
    return folder / "questions.json"


def test_every_source_is_tried(sections):
    assert sections.keys() == SOURCES.keys() == WRONG.keys()


@pytest.mark.parametrize("name", SOURCES)
def test_any_value_of_any_option_works_or_ends_in_one_line(name, sections, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder's name may be any word
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for option in inspect.signature(SOURCES[name]).parameters:
        for value in VALUES:
            if name.startswith("emoji_") and not isinstance(value, bytes | list | dict):
                continue  # it would be prepared, in any folder
            try:
                source = build(SOURCES, sections[name] | {option: value}, "source")
                order(source, 1, 4)[0], source[0], source.fingerprint()
            except USER_ERRORS as error:
                assert len(str(error).splitlines()) == 1, (option, value)


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, options in WRONG.items() for option in options]
)
def test_a_value_of_another_type_is_told_with_what_is_wanted(name, option, sections):
    value = WRONG[name][option]
    for opened in (open_section, lambda section: build(SOURCES, section, "source")):
        with pytest.raises(ValueError) as raised:
            opened(sections[name] | {option: value})
        line = str(raised.value)
        assert option in line and ("must be" in line or "needs" in line), line


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"name": "tar", "window": -1}, "window=-1 must be at least 0"),
        ({"name": "tar", "lanes": 0}, "lanes=0 must be at least 1"),
        ({"name": "files", "captions": []}, r"captions=\[\] must each name a column"),
        ({"name": "files", "root": "/no/such"}, "root='/no/such' is not a directory"),
        ({"name": "files", "header": "a,b"}, "header='a,b' must be a list of texts"),
        ({"name": "subset", "source": {"path": "x"}}, "must be a section of SOURCES"),
        ({"name": "files", "wnidow": 5}, "no option 'wnidow': did you mean 'window'"),
    ],
)
def test_lines_say_what_was_given_and_what_is_wanted(changed, line, sections):
    with pytest.raises((ValueError, OSError), match=line):
        open_section(sections[changed["name"]] | changed)


class Taker:
    """An entry with every kind of annotation."""

    def __init__(
        self, a: int = 0, b: float = 0, c: str | list = "", d: Path | None = None, e=0
    ): ...


@pytest.mark.parametrize("options", [{"a": 2}, {"b": 2}, {"c": []}, {"c": 5}, {"d": 5}, {"e": "x"}])
def test_only_what_is_known_of_a_type_is_checked(options):
    check_types(Taker, options, "taker")


RECIPE = """
from tiny_recipe import config

def get_config():
    return config(**{{"data.source": {source!r}}})
"""


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({"name": "files", "path": "/no/such.csv"}, "There is no file /no/such.csv"),
        ({"name": "folder", "path": "/no/such"}, "/no/such is not a directory"),
        ({"name": "tar", "path": "/no/{0..3}.tar"}, "There is no file /no/0.tar"),
        ({"name": "tar", "path": "x.tar", "window": "9"}, "window='9' must be a whole number"),
        ({"name": "tfds", "path": "/no/such"}, "/no/such is not a directory"),
        ({"name": "tfds", "path": ""}, "is empty"),
        ({"name": "mixture", "parts": {}}, "A mixture needs parts"),
        ({"name": "mixture", "parts": {"a": {"source": {}, "weight": 1}}}, "needs a name"),
        ({"name": "subset", "source": {"name": "tarr"}}, "did you mean 'tar'"),
        ({"name": "subset", "share": 0.1}, "missing a required argument: 'source'"),
        ({"name": "emoji_captions", "data_dir": "x"}, "missing a required argument: 'split'"),
    ],
)
def test_training_on_a_wrong_source_ends_in_one_line(source, line, fails, tmp_path):  # noqa: F811
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(source=source))
    assert line in fails(*train(tmp_path / "work", recipe=recipe))
