"""CAPTIONS: one contract for all, and what each draws from."""

import pickle
from collections import Counter
from functools import partial

import numpy as np
import pytest

from vlrep_jax.data.caption_choice import CAPTIONS, one_of_each
from vlrep_jax.data.caption_text import clean, shorten
from vlrep_jax.data.sources import Sample

LABELS = {"aliases": ("doggo",), "group": "Animals & Nature", "subgroup": "animal-mammal"}
DOG = Sample(b"", ("dog", "hound", "pooch"), "1", LABELS)


def drawn(name, sample=DOG, count=400, **options):
    caption = partial(CAPTIONS[name], **options)
    return [caption(sample, np.random.default_rng((7, i))) for i in range(count)]


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_choice_is_a_function_of_the_generator(name):
    caption = pickle.loads(pickle.dumps(CAPTIONS[name]))
    texts = [caption(DOG, np.random.default_rng((7, i))) for i in range(50)]
    assert texts == drawn(name, count=50)
    assert all(isinstance(text, str) and text.strip() == text != "" for text in texts)


@pytest.mark.parametrize("name", CAPTIONS)
def test_without_captions_the_text_is_empty(name):
    assert set(drawn(name, Sample(b"", (), "1", {}), count=20)) == {""}


def test_first_is_first_and_random_draws_all_evenly():
    assert set(drawn("first")) == {"dog"}
    counts = Counter(drawn("random"))
    assert set(counts) == {"dog", "hound", "pooch"}
    assert min(counts.values()) > 100  # 133 expected, 9 the standard deviation


def test_emoji_varies_template_name_and_group():
    texts = drawn("emoji")
    counts = Counter(texts)
    assert 0.4 < counts["dog"] / len(texts) < 0.7
    assert counts["doggo emoji"] and counts["a picture of dog"]
    assert any(text.endswith(", animals and nature") for text in texts)
    assert any(text.endswith(", animal mammal") for text in texts)
    assert set(drawn("emoji", plain_share=1.0)) == {"dog"}
    assert not any("doggo" in text for text in drawn("emoji", alias_share=0.0))
    assert not any(", " in text for text in drawn("emoji", group_share=0.0))


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a\tdog \n runs ", "a dog runs"),
        ("a <b>big</b><br/> dog <!-- x > y --> &amp; cat", "a big dog & cat"),
        ("a <b>big</b>, <span class='x'>red</span><p>dog", "a big, red dog"),
        ("&lt;p&gt;a dog&lt;/p&gt;", "a dog"),
        ("1 < 2 and 3 > 2 <3", "1 < 2 and 3 > 2 <3"),
        ("see https://a.b/c?d=e now www.x.de/ü or http", "see now or http"),
        ("a\x00 d\u200bog\x1b\ufeff", "a dog"),
        ("ein Hund, 犬。", "ein Hund, 犬。"),
        ("<div>", ""),
    ],
)
def test_cleaning_takes_away_what_no_one_says(text, cleaned):
    assert clean(text) == cleaned
    assert clean(cleaned) == cleaned


def test_each_part_of_cleaning_can_be_left_out():
    text = "<b>x</b>  www.a.de\x01"
    assert clean(text, tags=False) == "<b>x</b>"
    assert clean(text, urls=False) == "x www.a.de"
    assert clean(text, control=False) == "x"
    assert clean(text, spaces=False) == "x   "
    assert clean(text, tags=False, urls=False, control=False, spaces=False) == text


THREE = 'A dog runs. It is 3.5 m tall! "Really?" Yes'


@pytest.mark.parametrize(
    ("text", "limits", "short"),
    [
        (THREE, {}, THREE),
        (THREE, {"max_words": 10}, THREE),
        (THREE, {"max_words": 8}, "A dog runs. It is 3.5 m tall!"),
        (THREE, {"max_words": 9}, 'A dog runs. It is 3.5 m tall! "Really?"'),
        (THREE, {"max_words": 7}, "A dog runs."),
        (THREE, {"max_words": 3}, "A dog runs."),
        (THREE, {"max_words": 2}, "A dog"),
        (THREE, {"max_chars": 11}, "A dog runs."),
        (THREE, {"max_chars": 10}, "A dog"),
        (THREE, {"max_words": 7, "max_chars": 6}, "A dog"),
        ("Donaudampfschiff", {"max_chars": 5}, "Donau"),
        ("犬が走る。猫。", {"max_chars": 6}, "犬が走る。"),
    ],
)
def test_captions_are_cut_at_sentences_then_at_words(text, limits, short):
    assert shorten(text, **limits) == short


def test_options_of_wording_work_together_and_blank_captions_are_passed_over():
    sample = Sample(b"", (" ", "<i>a {dog}</i>. It runs."), "1", {})
    options = {"clean": True, "max_words": 2, "templates": ("photo: {}", "{}!")}
    for name in ("first", "random"):
        assert set(drawn(name, sample, **options)) == {"photo: a {dog}.", "a {dog}.!"}
        kept = drawn(name, sample, clean={"tags": False}, count=3)
        assert set(kept) == {"<i>a {dog}</i>. It runs."}
        assert set(
            drawn(name, Sample(b"", ("<br>",), "1", {}), clean=True, templates=("x {}",))
        ) == {""}


def test_a_draw_gives_each_caption_once_in_an_order_of_its_own():
    orders = set()
    for draw in range(50):
        texts = tuple(
            one_of_each(DOG, np.random.default_rng(draw), number).captions for number in range(4)
        )
        assert sorted(texts[:3]) == [("dog",), ("hound",), ("pooch",)] and texts[3] == texts[0]
        orders.add(texts)
    assert len(orders) == 6
    assert one_of_each(Sample(b"", (" ",), "1", {}), np.random.default_rng(0), 1).captions == (" ",)
