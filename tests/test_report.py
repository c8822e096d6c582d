"""The report as a browser gets it: well-formed, self-contained, escaped; and the cases it shows."""

import html.parser
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vlrep_jax.evals.retrieval import chance, retrieval
from vlrep_jax.evals.zero_shot import per_class_accuracy
from vlrep_jax.report import RetrievalPanel, ZeroShotPanel, contact_sheet, sheet, write_report
from vlrep_jax.report.markup import duration, ordinal, percent
from vlrep_jax.report.panels import Case

HOSTILE = (
    """<script src="https://evil.example/x.js">alert(1)</script><img src=x onerror='y'>&amp;"""
)
VOID = {"meta", "img", "br", "link", "input", "hr", "source"}
OPTIONAL_END = {"td", "th"}


class Page(html.parser.HTMLParser):
    """Collects elements and text; fails on an end tag that closes something else."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open[-1] != tag and self.open[-1] in OPTIONAL_END:
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def made_panel(n=12, captions_each=2, noise=0.5, seed=0, caption="caption {}"):
    rng = np.random.default_rng(seed)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    image = unit(rng.standard_normal((n, 6)))
    owners = np.repeat(np.arange(n), captions_each).astype(np.int32)
    text = unit(image[owners] + noise * rng.standard_normal((len(owners), 6)))
    pictures = rng.integers(0, 256, (n, 10, 8, 3), dtype=np.uint8)
    captions = [caption.format(i) for i in range(len(owners))]
    details = dict(image=image, text=text, image_of_text=owners, chance=chance(owners, n))
    metrics = retrieval(image, text, owners)
    return RetrievalPanel.of("unseen", details, pictures, captions), metrics


def made_classes(names=("red", "green", "blue"), n=30):
    rng = np.random.default_rng(1)
    labels = rng.integers(-1, len(names), n).astype(np.int32)
    predictions = np.stack([rng.permutation(len(names)) for _ in range(n)])
    return ZeroShotPanel(
        names, labels, predictions, per_class_accuracy(predictions, labels, len(names))
    )


def written(path, **changes):
    panel, metrics = made_panel()
    history = [{"step": 0} | {f"unseen/{name}": 0.01 for name in metrics}]
    history += [{"step": step, "train/loss": 5 / step} for step in range(1, 30)]
    history += [{"step": 30} | {f"unseen/{name}": value for name, value in metrics.items()}]
    sections = dict(
        title="A run",
        config={"model": {"width": 128}, "rates": (1, 2)},
        versions={"jax": "0.1.2"},
        history=history,
        retrieval=panel,
        zero_shot={"skin_tone": made_classes()},
        timing={"train": 90.0, "evaluate": 30.0},
    )
    write_report(path / "report.html", **sections | changes)
    return Page((path / "report.html").read_text(encoding="utf-8"))


def test_the_page_says_what_share_of_the_time_counted(tmp_path):
    written(tmp_path, goodput=0.75)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Goodput: 75.0 % of it, in steps that count." in source


def test_page_is_well_formed_and_loads_nothing(tmp_path):
    page = written(tmp_path)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "http" not in source and "@import" not in source
    assert set(re.findall(r"url\((.)", source)) <= {"#"}  # the clip paths inside the curves
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_page_says_the_numbers(tmp_path):
    page = written(tmp_path)
    words = " ".join(page.text)
    _, metrics = made_panel()
    for name, value in metrics.items():
        if "recall" in name:
            assert percent(value) in words
    assert "before training 1.0 %" in words
    assert f"chance {percent(5 / 12)}" in words  # five of twelve pictures
    assert "0.1.2" in words and '"width": 128' in words
    assert "2 min 0 s" in words and percent(0.75) in words  # 90 s of 120 s
    assert "skin tone" in words and "blue" in words


def test_everything_from_outside_is_escaped(tmp_path):
    panel, metrics = made_panel(caption=HOSTILE + "{}")
    panel = replace(panel, name=HOSTILE)
    last = {"step": 1} | {f"{HOSTILE}/{name}": value for name, value in metrics.items()}
    page = written(
        tmp_path,
        title=HOSTILE,
        retrieval=panel,
        zero_shot={HOSTILE: made_classes((HOSTILE, "b", "c"))},
        config={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        timing={HOSTILE: 1.0},
        history=[last | {HOSTILE + "/loss": 1.0, r"$\frac/loss": 2.0}],
    )
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert not [a for _, a in page.elements if "onerror" in a or a.get("src") == "x"]
    assert sum(HOSTILE in text for text in page.text) >= 20  # shown as it was written


@pytest.mark.parametrize(
    "missing",
    [
        dict(history=[]),
        dict(retrieval=None),
        dict(zero_shot={}),
        dict(timing={}),
        dict(history=[], retrieval=None, zero_shot={}, timing={}, config={}, versions={}),
        dict(history=[{"step": 1, "train/loss": float("nan")}]),
        dict(retrieval=made_panel(n=2, captions_each=1)[0]),
        dict(retrieval=made_panel(noise=0)[0]),  # no wrong case
    ],
)
def test_page_does_without(tmp_path, missing):
    assert "A run" in written(tmp_path, **missing).text


def test_long_history_and_many_classes_stay_small(tmp_path):
    history = [{"step": step, "train/loss": 1 / (1 + step)} for step in range(50_000)]
    classes = made_classes([f"class {i}" for i in range(300)], n=3000)
    page = written(tmp_path, history=history, zero_shot={"all": classes})
    assert "280 more classes" in page.text
    assert (tmp_path / "report.html").stat().st_size < 400_000


def test_cases_are_spread_over_right_and_wrong():
    """Middles of equal slices: of 4 right cases, the 2nd and 4th; of 6 wrong, the 2nd, 4th, 6th."""
    panel, _ = made_panel(n=10, captions_each=1)
    rank = np.array([1, 2, 3, 1, 7, 1, 9, 2, 4, 1])
    panel = replace(panel, rank_of_caption=rank)
    right, wrong = panel.caption_cases(2, 3)
    assert [case.query for case in right] == [3, 9]
    assert [case.query for case in wrong] == [2, 6, 8]
    assert [case.rank for case in wrong] == [3, 9, 4]
    everything = panel.caption_cases(100, 100)
    assert [len(cases) for cases in everything] == [4, 6]


def test_cases_agree_with_the_scores():
    """Each case's candidates, own ones and rank, from the embeddings by hand."""
    panel, metrics = made_panel(n=40, captions_each=3, noise=1.5)
    right, wrong = panel.image_cases(100, 100)
    assert len(right) / 40 == metrics["image_to_text_recall@1"]
    assert all(case.found[0] in case.own and case.missing is None for case in right)
    late = [case for case in wrong if case.rank > 5]
    assert late and all(case.missing == case.own[0] for case in late)
    for case in right + wrong:
        assert sorted(case.own) == [3 * case.query + i for i in range(3)]
        if case.rank <= 5:  # own[0] is the one that the rank is of
            assert case.found[case.rank - 1] == case.own[0]


def test_a_case_misses_only_what_was_not_found():
    assert Case(0, [3, 1], own=[1, 9], rank=2).missing is None
    assert Case(0, [3, 1], own=[9, 8], rank=4).missing == 9


def test_panel_refuses_other_pictures():
    panel, _ = made_panel()
    details = dict(image=np.eye(3), text=np.eye(3), image_of_text=np.arange(3), chance={})
    with pytest.raises(ValueError, match="12 pictures and 24 captions for 3 and 3"):
        RetrievalPanel.of("unseen", details, panel.pictures, panel.captions)


def test_contact_sheet_frames_the_right_pictures(tmp_path):
    """Perfect embeddings: the first picture is framed and no other; poor ones: the late one too."""
    columns = {}
    for name, noise, caption in (("perfect", 0, "{}"), ("poor", 5, "a long caption " * 200 + "{}")):
        panel, _ = made_panel(noise=noise, captions_each=1, caption=caption)
        contact_sheet(tmp_path / f"{name}.png", panel, right=2, wrong=2, scale=1)
        with Image.open(tmp_path / f"{name}.png") as picture:
            green = (np.asarray(picture.convert("RGB")) == (0x1A, 0x8A, 0x4A)).all(-1).any(0)
        left = sheet.MARGIN + sheet.CAPTION_WIDTH
        columns[name] = [green[left + i * (sheet.PICTURE + sheet.GAP)] for i in range(5)]
        columns[name].append(green[left + 5 * (sheet.PICTURE + sheet.GAP) + sheet.LATE_GAP])
    assert columns["perfect"] == [True, False, False, False, False, False]
    assert columns["poor"][0] and columns["poor"][5]


@pytest.mark.parametrize(
    ("n", "word"),
    [
        (1, "1st"),
        (2, "2nd"),
        (3, "3rd"),
        (4, "4th"),
        (11, "11th"),
        (112, "112th"),
        (1021, "1,021st"),
    ],
)
def test_ordinals(n, word):
    assert ordinal(n) == word


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.84, "0.8 s"), (59.4, "59.4 s"), (75, "1 min 15 s"), (7260, "2 h 1 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
