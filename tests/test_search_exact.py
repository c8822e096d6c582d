"""Exact search ranks as NumPy does in float64, whatever the chunks, the devices and the ties."""

import jax
import numpy as np
import pytest

from vlrep_jax.parallel import make_mesh
from vlrep_jax.search.engine import make_query
from vlrep_jax.search.exact import Exact


def oracle(queries, embeddings, rows, k):
    """The ranking in float64; of equal scores the lower row first."""
    scores = np.float64(queries) @ np.float64(embeddings[rows]).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows[order], np.take_along_axis(scores, order, 1)


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return np.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))


def tied(rng, *shape):
    """Rows of which many score the same, exactly: all sums are of multiples of 1/64."""
    return np.float32(rng.integers(-1, 2, shape)) / 8


MESHES = {"one": None, "eight": jax.devices()}


@pytest.fixture(params=MESHES)
def mesh(request):
    devices = MESHES[request.param]
    return devices and make_mesh(devices=devices)


@pytest.mark.parametrize("kind", [unit, tied])
@pytest.mark.parametrize(
    "n, k, chunk",
    [(500, 20, 64), (500, 20, 4096), (500, 300, 64), (500, 900, 64), (61, 5, 64), (1, 3, 64)],
)
def test_ranking_is_that_of_float64(mesh, kind, n, k, chunk):
    rng = np.random.default_rng(n + k)
    embeddings, queries = kind(rng, n, 32), kind(rng, 3, 32)
    rows = np.sort(rng.permutation(n)[: max(n * 4 // 5, 1)])  # the others are of pictures gone
    found, scores = Exact(embeddings, rows, mesh=mesh, chunk=chunk).search(queries, k)
    expected, expected_scores = oracle(queries, embeddings, rows, k)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-15)  # the order of a float64 sum


def test_rows_that_float32_cannot_tell_apart_are_ranked_all_the_same(mesh):
    """All scores lie within a rounding of float32, so that its own ranking is noise."""
    rng = np.random.default_rng(0)
    embeddings = np.repeat(unit(rng, 1, 64), 1500, axis=0)
    queries, rows = embeddings[:2].copy(), np.arange(1500)
    embeddings[:, :4] += np.float32(1e-8) * rng.integers(-9, 10, (1500, 4)).astype(np.float32)
    expected, scores = oracle(queries, embeddings, rows, 10)
    assert len(np.unique(scores[0])) > 5
    candidates = np.argsort(-(embeddings @ queries[0]), kind="stable")[:200]
    assert not np.isin(expected[0], candidates).all()  # else this would show nothing
    found, _ = Exact(embeddings, rows, mesh=mesh, chunk=256).search(queries, 10)
    np.testing.assert_array_equal(found, expected)


def test_copies_come_in_the_order_of_the_index(mesh):
    embeddings = np.repeat(unit(np.random.default_rng(0), 1, 16), 200, axis=0)
    search = Exact(embeddings, np.arange(200), mesh=mesh, chunk=32)
    found, scores = search.search(embeddings[:1], 7)
    assert found.tolist() == [list(range(7))] and len(np.unique(scores)) == 1


def test_chunks_that_do_not_stay_on_the_devices_give_the_same(mesh):
    rng = np.random.default_rng(1)
    embeddings, queries = unit(rng, 300, 16), unit(rng, 2, 16)
    options = dict(rows=np.arange(300), mesh=mesh, chunk=64)
    kept = Exact(embeddings, **options)
    sent = Exact(embeddings, **options, resident_bytes=0)
    for _ in range(2):
        np.testing.assert_array_equal(kept.search(queries, 9), sent.search(queries, 9))


def test_an_empty_index_has_no_results(mesh):
    search = Exact(np.zeros((4, 8), np.float32), np.zeros(0, np.int64), mesh=mesh)
    found, scores = search.search(np.ones((2, 8), np.float32), 3)
    assert found.shape == scores.shape == (2, 0)


def test_queries_that_do_not_fit_are_refused():
    search = Exact(np.zeros((4, 8), np.float32), np.arange(4))
    for queries, k in ((np.ones((1, 7)), 3), (np.ones(8), 3), (np.ones((1, 8)), 0)):
        with pytest.raises(ValueError, match=r"expected \[q, 8\]"):
            search.search(queries, k)


def test_a_query_is_what_is_wanted_less_what_is_not():
    x, y, z = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(make_query([x]), x)
    np.testing.assert_allclose(make_query([x, y]), np.sqrt([0.5, 0.5, 0]), rtol=1e-6)
    wanted, unwanted = make_query([x], [y])[:2]
    assert wanted > 0 > unwanted
    with pytest.raises(ValueError, match="nothing to look for"):
        make_query([], [z])
    with pytest.raises(ValueError, match="cancel out"):
        make_query([x, -x])
