"""Retrieval against hand-worked ranks and a NumPy oracle that sorts the whole score matrix."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from vlrep_jax.evals.retrieval import captions_of, chance, ranks, retrieval, top_k


def unit_rows(seed, *shape):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def mesh_of(n):
    shape, names = ((n,), ("data",)) if n < 4 else ((n // 2, 2), ("data", "model"))
    types = (AxisType.Auto,) * len(names)
    return jax.make_mesh(shape, names, devices=jax.devices()[:n], axis_types=types)


def oracle_ranks(queries, items, own):
    """Ranks from a stable sort of the whole score matrix."""
    order = np.argsort(-(queries.astype(np.float64) @ items.T.astype(np.float64)), kind="stable")
    return np.array(
        [1 + min(list(row).index(o) for o in mine) for row, mine in zip(order, own, strict=True)]
    )


def test_hand_worked_recall_with_several_captions():
    """Scores by hand: each picture's captions, and each caption's picture, in sorted order."""
    image = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    text = np.array([[0.6, 0.8], [0.8, -0.6], [0, 1], [-0.8, 0.6], [0.8, 0.6]], np.float32)
    image_of_text = [0, 0, 1, 2, 2]
    # Image 0 scores the texts .6 .8 0 -.8 .8: text 1 (own) leads, the tied text 4 comes after.
    # Image 1 scores them .8 -.6 1 .6 .6: text 2 (own) leads.  Image 2: text 3 (own) leads.
    # Text 0 scores the images .6 .8 -.6: own is second.  Text 1: .8 -.6 -.8: first.
    # Text 2: 0 1 0: first.  Text 3: -.8 .6 .8: first.  Text 4: .8 .6 -.8: own is third.
    assert retrieval(image, text, image_of_text, ks=(1, 2)) == {
        "image_to_text_recall@1": 1.0,
        "image_to_text_recall@2": 1.0,
        "image_to_text_median_rank": 1.0,
        "text_to_image_recall@1": 0.6,
        "text_to_image_recall@2": 0.8,
        "text_to_image_median_rank": 1.0,
    }


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_ranks_equal_a_full_stable_sort(chunk):
    """Every chunk size, those included that do not divide the number of queries."""
    image, text = unit_rows(0, 40, 16), unit_rows(1, 103, 16)
    image_of_text = np.random.default_rng(2).integers(0, 40, 103)
    captions = [np.flatnonzero(image_of_text == i) for i in range(40)]
    has = np.array([len(c) > 0 for c in captions])
    assert not has.all()  # some image has no caption, some has several
    expected = {
        "image_to_text": oracle_ranks(image[has], text, [c for c in captions if len(c)]),
        "text_to_image": oracle_ranks(text, image, image_of_text[:, None]),
    }
    got = retrieval(image, text, image_of_text, chunk=chunk)
    for direction, rank in expected.items():
        for k in (1, 5, 10):
            assert got[f"{direction}_recall@{k}"] == np.mean(rank <= k)
        assert got[f"{direction}_median_rank"] == np.median(rank)


def test_image_without_caption_is_a_candidate_but_no_query():
    metrics = retrieval(np.eye(3)[[0, 1, 1]], np.eye(3)[[0, 1]], [0, 2], ks=(1,))
    assert metrics["image_to_text_recall@1"] == 1.0  # of images 0 and 2
    assert metrics["text_to_image_recall@1"] == 0.5  # image 1 equals image 2 and comes first


@pytest.mark.parametrize("n", [1, 10, 37, 129])
def test_constant_embeddings_score_at_chance(n):
    """All tied: the i-th query finds its own at place i, so recall@k is k of n."""
    constant = np.repeat(unit_rows(3, 1, 48), n, axis=0)
    np.testing.assert_array_equal(ranks(constant, constant, np.arange(n)), np.arange(n) + 1)
    metrics = retrieval(constant, constant)
    for direction in ("image_to_text", "text_to_image"):
        assert metrics[f"{direction}_recall@10"] == min(10, n) / n
        assert metrics[f"{direction}_median_rank"] == (n + 1) / 2


def test_copies_of_an_item_tie_exactly():
    """No last-bit difference may lift an item above, or drop it below, its own copy."""
    item = unit_rows(4, 50, 33)
    items = np.concatenate([item, item, item])
    own = np.arange(100, 150)  # the last of three copies
    np.testing.assert_array_equal(ranks(item, items, own), np.full(50, 3))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_sharding_changes_nothing(devices):
    image, text = unit_rows(5, 50, 24), unit_rows(6, 101, 24)
    image_of_text = np.arange(101) % 50
    mesh = mesh_of(devices)
    for chunk in (3, 16, 1024):
        got = retrieval(image, text, image_of_text, chunk=chunk, mesh=mesh)
        assert got == retrieval(image, text, image_of_text)
        indices, scores = top_k(text, image, 5, chunk, mesh=mesh)
        np.testing.assert_array_equal(indices, top_k(text, image, 5)[0])
        np.testing.assert_allclose(scores, top_k(text, image, 5)[1], rtol=1e-6)  # float32 rounding


def test_a_sharded_chunk_is_split_over_the_devices(monkeypatch):
    """Eight devices hold an eighth of the rows each; no device holds the whole chunk."""
    seen = []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda *a, **k: seen.append(put(*a, **k)) or seen[-1])
    top_k(unit_rows(0, 64, 8), unit_rows(1, 20, 8), 5, chunk=64, mesh=mesh_of(8))
    shards = {x.shape: x.addressable_shards[0].data.shape for x in seen}
    assert shards == {(20, 8): (20, 8), (64, 8): (8, 8)}


def test_top_k_is_the_head_of_a_stable_sort():
    queries, items = unit_rows(7, 9, 12), unit_rows(8, 6, 12)
    items[4] = items[1]
    scores = queries @ items.T
    indices, best = top_k(queries, items, 10, chunk=4)
    np.testing.assert_array_equal(indices, np.argsort(-scores, kind="stable"))
    # float32 rounding
    np.testing.assert_allclose(best, np.take_along_axis(scores, indices, 1), rtol=1e-5, atol=1e-6)


def test_captions_of_lists_each_image_in_order():
    assert captions_of([2, 0, 2], 4).tolist() == [[1, -1], [-1, -1], [0, 2], [-1, -1]]


def test_chance_is_what_random_orders_average():
    rng = np.random.default_rng(0)
    image_of_text = np.array([0, 0, 0, 1, 2, 2, 4])
    draws = [
        retrieval(x[:5], x[5:], image_of_text, ks=(1, 3))
        for x in rng.standard_normal((800, 12, 6)).astype(np.float32)
    ]
    for name, expected in chance(image_of_text, 5, ks=(1, 3)).items():
        # Five standard errors of a mean of 800 draws in [0, 1], at most 0.5 / sqrt(800) each.
        assert abs(np.mean([d[name] for d in draws]) - expected) < 0.09
    assert chance([0, 1], 2, ks=(5,)) == {"image_to_text_recall@5": 1, "text_to_image_recall@5": 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_broken_embeddings_are_an_error_not_a_score(side, bad):
    sides = [np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)]
    sides[side][2, 1] = bad
    with pytest.raises(ValueError, match=r"1 of 4 .* NaN or infinite \(first: row 2\)"):
        retrieval(*sides)


@pytest.mark.parametrize(
    ("image", "text", "owners", "message"),
    [
        (np.eye(3), np.eye(3)[:2], None, "3 images and 2 texts: give image_of_text"),
        (np.eye(3), np.eye(3), [0, 1, 3], "there are 3 images"),
        (np.eye(3), np.eye(3), [0, -1, 1], "holds -1 to 1"),
        (np.eye(3), np.eye(3), [0, 1], r"expected \[3\]"),
        (np.eye(3), np.eye(3)[:, :2], None, "differ in width: 3 and 2"),
        (np.zeros((0, 3)), np.zeros((0, 3)), None, "n > 0"),
        (np.ones(3), np.eye(3), None, r"expected \[n, d\]"),
    ],
)
def test_retrieval_says_what_does_not_fit(image, text, owners, message):
    with pytest.raises(ValueError, match=message):
        retrieval(image, text, owners)
