"""Pictures that are there more than once: the same file, or the same to the eye."""

import numpy as np

BANDS, BAND_BITS = 4, 16
NEAR = BANDS - 1  # bits; pairs that differ in fewer bits than there are bands agree in one band
_PAIRS_AT_A_TIME = 1 << 22
# A band value that so many pictures share says little: plain ones, most of all. Their pairs would
# be counted in billions.
_CROWD = 5000


def groups_of_equal(hashes: np.ndarray) -> list[np.ndarray]:
    """Rows of equal hash, as one array of ascending row numbers a group of two or more."""
    order = np.argsort(hashes, kind="stable")
    return list(_runs(hashes[order], order))


def groups_of_near(looks: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Rows whose perceptual hashes differ in at most NEAR bits, joined from pair to pair.

    Args:
        looks: uint64[n].

    Returns:
        The groups of two or more, as ascending row numbers, and how many rows were in crowds of
        more than 5,000 with an equal band, inside of which only equal hashes were joined.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(looks):
        return [], 0
    distinct, row_of = np.unique(looks, return_inverse=True)
    edges, crowded = [], np.zeros(len(distinct), bool)
    for band in range(BANDS):
        values = (distinct >> np.uint64(band * BAND_BITS)) & np.uint64((1 << BAND_BITS) - 1)
        order = np.argsort(values, kind="stable")
        for bucket in _runs(values[order], order):
            if len(bucket) > _CROWD:
                crowded[bucket] = True
            else:
                edges += _near_pairs(distinct, bucket)
    pairs = np.concatenate(edges) if edges else np.empty((0, 2), np.int64)
    shape = (len(distinct), len(distinct))
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape)
    _, labels = connected_components(graph, directed=False)
    return groups_of_equal(labels[row_of]), int(crowded[row_of].sum())


def _near_pairs(hashes, rows):
    """Arrays [m, 2] of pairs of rows whose hashes differ in at most NEAR bits."""
    found, step = [], max(_PAIRS_AT_A_TIME // len(rows), 1)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        far = np.bitwise_count(hashes[some][:, None] ^ hashes[rows][None]) > NEAR
        a, b = np.nonzero(~far)
        pairs = np.stack([some[a], rows[b]], axis=1)
        found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return found


def _runs(values, order):
    """Parts of `order`, of two or more, over which the sorted values are equal."""
    if not len(order):
        return
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    ends = np.concatenate([starts[1:], [len(order)]])
    several = ends - starts > 1  # among millions of rows few are; the others make no array
    for start, end in zip(starts[several], ends[several], strict=True):
        yield order[start:end]
