"""CAPTIONS: one contract for all, and what each draws from."""

import pickle
from collections import Counter
from functools import partial

import numpy as np
import pytest

from vlrep_jax.data.caption_choice import CAPTIONS
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
