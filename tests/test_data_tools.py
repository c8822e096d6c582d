"""What `vlrep data check` finds in hand-made data, and what `inspect` shows of a batch."""

import base64
import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from data_files import write_csv
from emoji_data import ListSource, encoded, flat, noise
from PIL import Image
from tars import shards
from tiny_recipe import Squares, config

from vlrep_jax import data
from vlrep_jax.data.sources import SOURCES, Sample
from vlrep_jax.data.sources.subset import Subset
from vlrep_jax.data_tools import check_page
from vlrep_jax.data_tools import scan as scanning
from vlrep_jax.data_tools.check import check
from vlrep_jax.data_tools.duplicates import groups_of_equal, groups_of_near
from vlrep_jax.data_tools.inspection import inspect
from vlrep_jax.data_tools.scan import scan, script
from vlrep_jax.experiment import make_experiment, make_tokenizer

FIRST = encoded(noise(60, 90, seed=1))
SECOND = noise(40, 130, seed=2)
# (file, captions, problem of the source) -> the reason for which it is bad.
ROWS = [
    ((FIRST, ("a dog", " "), ""), ""),
    ((encoded(SECOND), ("собака на траве",), ""), ""),
    ((b"", ("nothing",), ""), "empty"),
    ((FIRST, ("a dog", "犬がいる"), ""), ""),  # the same file
    ((encoded(SECOND, "JPEG", quality=85), ("a <script>dog</script>",), ""), ""),  # near SECOND
    ((FIRST[:300], ("cut",), ""), "truncated"),
    ((flat(3), ("", " \n"), ""), "no_caption"),
    ((b"", ("gone",), "missing"), "missing"),
    ((encoded(noise(300, 20, seed=3)), ("one two three four", "\ud800 half"), ""), ""),
    ((encoded(np.zeros((1, 9, 3), np.uint8)), ("a line",), ""), "too_small"),
    ((b"<html>", ("a page",), ""), "format"),
    ((FIRST, ("a\tdog",), ""), ""),  # the same file again
]
GOOD = [i for i, (_, reason) in enumerate(ROWS) if not reason]


def hand_made():
    rows = (row for row, _ in ROWS)
    return ListSource(
        Sample(image, captions, f"k {i}", {}, problem=problem)
        for i, (image, captions, problem) in enumerate(rows)
    )


def checked(source, out, **options):
    """Figures, and the lines of each text file."""
    figures = check(source, "hand-made", out, say=lambda text: None, **{"workers": 0} | options)
    assert json.loads((out / "check.json").read_text()) == figures
    texts = ("bad.tsv", "duplicates.txt", "near_duplicates.tsv")
    return figures, {name: (out / name).read_text().splitlines() for name in texts}


def test_the_list_of_duplicates_leaves_each_file_once(tmp_path):
    keys = [" two  spaces", "é/plain.png", "third \u2028 "]
    source = ListSource(Sample(FIRST, ("a",), key, {}) for key in keys)
    checked(source, tmp_path / "r")
    left = Subset(source, exclude=str(tmp_path / "r" / "duplicates.txt"))
    assert [sample.key for sample in left.__getitems__(range(len(left)))] == keys[:1]


def test_every_reason_has_words_on_the_page():
    code = "\n".join(path.read_text() for path in Path(data.__file__).parent.rglob("*.py"))
    bad = re.findall(r'(?:BadRow|BadImage)\("(\w+)"|problem="(\w+)"', code)
    assert {"".join(found) for found in bad} <= check_page.WHY.keys()
    left_out = re.findall(r'(?:skipped\[|Damaged\()"(\w+)"', code)
    assert len(bad) > 15 and len(left_out) > 15
    assert set(left_out) - {"changed"} <= check_page.LEFT_OUT.keys()  # that one is of reading


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_in_the_data_is_in_the_report(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "CHUNK", 5)
    figures, lines = checked(hand_made(), tmp_path / "r", workers=workers)
    expected = {i: reason for i, (_, reason) in enumerate(ROWS) if reason}
    assert lines["bad.tsv"] == [f"k {i}\t{reason}" for i, reason in expected.items()]
    assert figures["bad"] == dict.fromkeys(expected.values(), 1)
    assert (figures["samples"], figures["scanned"], figures["good"]) == (12, 12, len(GOOD))
    assert lines["duplicates.txt"] == ["k 3", "k 11"]
    assert lines["near_duplicates.tsv"] == ["k 1\t0", "k 4\t0"]
    assert figures["duplicates"] == {
        "files_there_before": 2,
        "groups": 1,
        "alike_to_the_eye": 2,
        "alike_groups": 1,
        "in_crowds": 0,
    }
    assert figures["formats"] == {"PNG": 5, "JPEG": 1}
    assert (figures["width"]["min"], figures["width"]["max"]) == (20, 130)
    assert (figures["height"]["min"], figures["height"]["max"]) == (40, 300)
    assert figures["short_side"]["counts"] == {"under 32": 1, "32 to 63": 5}
    assert figures["long_over_short"]["max"] == 15
    sizes = [len(ROWS[i][0][0]) for i in GOOD]
    assert figures["file_bytes"]["min"] == min(sizes)
    assert figures["file_bytes"]["median"] == np.median(sizes)
    captions = figures["captions"]
    assert (captions["texts"], captions["different"]) == (8, 7)
    assert captions["scripts"] == {"Latin": 6, "Cyrillic": 1, "Hiragana": 1}
    assert captions["most_repeated"] == [["a dog", 2]]
    assert captions["words"]["counts"] == {"under 2": 1, "2 to 3": 6, "4 to 7": 1}
    assert captions["of_a_picture"]["max"] == 2
    page = (tmp_path / "r" / "report.html").read_text()
    assert "<script" not in page and "a &lt;script&gt;dog" in page
    assert [path.name for path in tmp_path.iterdir()] == ["r"]  # nothing else is left


def test_left_out_duplicates_leave_each_file_once(tmp_path):
    for number, i in enumerate(GOOD):
        (tmp_path / f"{number}.img").write_bytes(ROWS[i][0][0])
    rows = [{"image": f"{n}.img", "caption": f"text {n}"} for n in range(len(GOOD))]
    section = {"path": str(write_csv(tmp_path / "t.csv", rows)), "key": "image"}
    source = SOURCES["files"](**section)
    checked(source, tmp_path / "r")
    exclude = str(tmp_path / "r" / "duplicates.txt")
    left = SOURCES["subset"]({"name": "files", **section}, exclude=exclude)
    files = {sample.image for sample in source.__getitems__(range(len(source)))}
    assert len(source) == 6 and len(left) == len(files) == 4
    assert {sample.image for sample in left.__getitems__(range(4))} == files


def test_a_limit_looks_at_a_random_part(tmp_path):
    source = ListSource([Sample(flat(i), (f"number {i}",), str(i), {}) for i in range(200)])
    found = scan(source, workers=0, limit=50, clock=lambda: 0.0)
    assert (found.size, found.scanned, len(found.rows)) == (200, 50, 50)
    index = found.rows["index"]
    assert (np.diff(index) > 0).all() and index[0] < 50 and index[-1] >= 150
    figures, _ = checked(source, tmp_path / "r", limit=1000)
    assert figures["scanned"] == 200


def test_a_repeated_caption_is_found_wherever_it_stands(tmp_path):
    texts = [f"number {i}" if i < 150 else f"late {i % 2}" for i in range(200)]
    source = ListSource([Sample(flat(i), (text,), str(i), {}) for i, text in enumerate(texts)])
    figures, _ = checked(source, tmp_path / "r")
    assert sorted(figures["captions"]["most_repeated"]) == [["late 0", 25], ["late 1", 25]]


def test_data_of_which_nothing_is_good_have_a_report(tmp_path):
    source = ListSource([Sample(b"no", ("text",), str(i), {}) for i in range(3)])
    figures, lines = checked(source, tmp_path / "r")
    assert (figures["good"], figures["bad"], len(lines["bad.tsv"])) == (0, {"format": 3}, 3)
    assert "0.0 %" in (tmp_path / "r" / "report.html").read_text()


def test_a_missing_package_is_told_and_not_taken_for_no_duplicates(tmp_path, monkeypatch):
    monkeypatch.setattr(scanning.importlib.util, "find_spec", lambda name: None)
    said = []
    figures = check(hand_made(), "mine", tmp_path / "r", workers=0, say=said.append)
    assert figures["duplicates"]["alike_to_the_eye"] is None
    assert figures["duplicates"]["files_there_before"] == 2  # needs no package
    page = (tmp_path / "r" / "report.html").read_text()
    assert "imagehash" in said[0] and "imagehash" in page


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a dog", "Latin"),
        ("ＷＩＤＥ 𝐛𝐨𝐥𝐝", "Latin"),
        ("Ελλάδα abc", "Greek"),
        ("собака dog", "Cyrillic"),
        ("مرحبا", "Arabic"),
        ("שלום", "Hebrew"),
        ("कुत्ता", "Devanagari"),
        ("強い犬", "Han"),
        ("犬がいます", "Hiragana"),
        ("ﾃﾚﾋﾞ", "Katakana"),
        ("강아지", "Hangul"),
        ("12 + 3 = 😀", "none"),
    ],
)
def test_a_text_is_of_the_script_of_most_of_its_letters(text, name):
    assert script(text) == name


def test_equal_hashes_are_grouped():
    hashes = np.array([5, 7, 5, 9, 7, 5, 1], np.uint64)
    assert [list(group) for group in groups_of_equal(hashes)] == [[0, 2, 5], [1, 4]]
    assert groups_of_equal(np.empty(0, np.uint64)) == []


def test_near_hashes_are_those_of_a_search_through_all_pairs():
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 2**64, 400, np.uint64, endpoint=False)
    for row in range(0, 200, 2):  # neighbours that differ in 0 to 6 bits
        bits = rng.choice(64, rng.integers(0, 7), replace=False).astype(np.uint64)
        looks[row + 1] = looks[row] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=0)
    order = rng.permutation(400)
    groups, crowded = groups_of_near(looks[order])
    parent = list(range(400))

    def root(i):
        return i if parent[i] == i else root(parent[i])

    for a, b in itertools.combinations(range(400), 2):
        if int(looks[order[a]] ^ looks[order[b]]).bit_count() <= 3:
            parent[root(b)] = root(a)
    expected = {}
    for i in range(400):
        expected.setdefault(root(i), []).append(i)
    expected = sorted(group for group in expected.values() if len(group) > 1)
    assert sorted(map(list, groups)) == expected and 40 < len(expected) < 80
    assert crowded == 0
    assert groups_of_near(np.empty(0, np.uint64)) == ([], 0)


def test_a_crowd_is_joined_where_equal_alone():
    # All share three bands; within so large a crowd pairs are not compared.
    looks = np.repeat(np.arange(5500, dtype=np.uint64) << np.uint64(16), [2] + [1] * 5499)
    groups, crowded = groups_of_near(looks)
    assert crowded == len(looks)
    assert [list(group) for group in groups] == [[0, 1]]


def test_little_is_handed_out_ahead():
    taken = []

    def chunks():
        for number in range(1000):
            taken.append(number)
            yield range(number % 12, number % 12 + 1)

    parts = scanning._parts(chunks(), 1, (hand_made(), 10**6, False))
    for _ in range(3):
        assert next(parts).size == 1
    assert len(taken) < 10
    parts.close()


# Inspect.


@pytest.fixture
def squares(monkeypatch):
    monkeypatch.setitem(SOURCES, "squares", Squares)


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("kind", ["plain", "captions", "lanes"])
def test_what_is_shown_is_what_training_takes(kind, step, squares, tmp_path):
    changed, count, rows = {}, 9, 8
    if kind == "captions":
        changed, count, rows = {"data.captions_per_image": 2}, 5, 4
    if kind == "lanes":
        pattern = shards(tmp_path / "shards", 5, 20)
        tar = {"name": "tar", "path": pattern, "window": 8, "lanes": 4}
        changed = {"data.source": tar, "data.num_workers": 1}
    recipe = config(**changed)
    shown = inspect(recipe, tmp_path / "p.html", label="tiny", count=count, step=step, say=str)
    batches = make_experiment(recipe).train_batches(make_tokenizer(recipe))
    for _ in range(step + 1):
        taken = next(batches)
    batches.close()
    assert shown.keys() == taken.keys() and len(shown["image"]) == rows
    for name, values in shown.items():
        np.testing.assert_array_equal(values, taken[name][:rows])
    # The page holds these very pixels, and the texts.
    page = (tmp_path / "p.html").read_text()
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]
    np.testing.assert_array_equal(pixels, taken["image"][:rows])
    tokenizer = make_tokenizer(recipe)
    for ids in taken["text"][:rows]:
        assert f'<p dir="auto">{tokenizer.decode(ids)}</p>' in page


def test_a_recipe_for_many_chips_is_shown_on_none(squares, tmp_path):
    recipe = config(**{"parallel.fsdp": 16, "batch_size": 48})
    inspect(recipe, tmp_path / "p.html", label="tiny", count=7, say=str)
    with pytest.raises(ValueError, match="fsdp=16"):
        make_experiment(recipe)
