"""Ranking by cosine similarity: recall@k, median rank and the nearest items, in chunks of queries.

One order holds everywhere: higher score first, and among equal scores the lower index, as in a
stable sort. Equal embeddings therefore score at chance, not at 100 %. Encoding lives elsewhere.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def retrieval(image, text, image_of_text=None, *, ks=(1, 5, 10), chunk=1024, mesh=None):
    """Recall@k and median rank of images among texts and of texts among images.

    A picture with several captions counts as found when any of them is in the top k, as COCO and
    Flickr30k report it. An image that no text belongs to is still a candidate for the texts, but
    is left out of the averages from image to text.

    Args:
      image: float32[n, d], L2-normalised.
      text: float32[m, d], L2-normalised.
      image_of_text: int32[m], the image that each text describes; None if text i describes
        image i.
      ks: the depths of recall.
      chunk: queries scored at once; the memory is float32[chunk, candidates] over all devices.
      mesh: devices to split each chunk over (all its axes); None for the default device. Over
        several processes every one passes the same arrays and gets the same result.

    Returns:
      {name: float}: `image_to_text_recall@k`, `text_to_image_recall@k` for every k (a fraction),
      `image_to_text_median_rank`, `text_to_image_median_rank` (1 is best; the mean of the middle
      two for an even count).

    Raises:
      ValueError: shapes or indices do not fit together, or an embedding is NaN or infinite.
    """
    image, text = _embeddings("image", image), _embeddings("text", text)
    image_of_text = _owners(image_of_text, len(image), len(text))
    captions = captions_of(image_of_text, len(image))
    options = dict(chunk=chunk, mesh=mesh)
    from_image = ranks(image, text, captions, **options)[captions[:, 0] >= 0]
    from_text = ranks(text, image, image_of_text, **options)
    metrics = {}
    for direction, found in (("image_to_text", from_image), ("text_to_image", from_text)):
        metrics |= {f"{direction}_recall@{k}": float(np.mean(found <= k)) for k in ks}
        metrics[f"{direction}_median_rank"] = float(np.median(found))
    return metrics


def ranks(queries, items, own, *, chunk=1024, mesh=None):
    """The place of each query's best own item among all items: 1 is first, 0 means it has none.

    Args:
      queries, items: float32[n, d] and float32[m, d]; the score is their inner product.
      own: int32[n] or int32[n, c], the items that are right for each query; -1 is no item.
      chunk, mesh: as in `retrieval`.

    Returns:
      int32[n].

    Raises:
      ValueError: as `retrieval`.

    >>> ranks(np.eye(3), np.eye(3), [0, 2, 2]).tolist()  # query 1 ties between items 0 and 2
    [1, 3, 1]
    """
    queries, items = _embeddings("queries", queries), _embeddings("items", items)
    own = np.asarray(own, np.int32).reshape(len(queries), -1)
    if own.size and (own.min() < -1 or own.max() >= len(items)):
        raise ValueError(
            f"own holds {own.min()} to {own.max()}, but there are {len(items)} items (and -1)."
        )
    return _in_chunks(_rank_rows, (queries, own), items, chunk, mesh)[0]


def top_k(queries, items, k, chunk=1024, *, mesh=None):
    """The k best items of each query, best first.

    Args:
      queries, items: float32[n, d] and float32[m, d]; the score is their inner product.
      k: how many; all m where there are fewer.
      chunk, mesh: as in `retrieval`.

    Returns:
      indices int32[n, k] and scores float32[n, k].

    Raises:
      ValueError: as `retrieval`, or k < 1.
    """
    queries, items = _embeddings("queries", queries), _embeddings("items", items)
    if k < 1:
        raise ValueError(f"k={k} must be at least 1.")
    return _in_chunks(_top_rows, (queries,), items, chunk, mesh, k=min(k, len(items)))


def chance(image_of_text, n, *, ks=(1, 5, 10)):
    """The recall that a random order of the candidates expects, under `retrieval`'s names.

    >>> chance([0, 0, 1, 1], 2, ks=(1,))  # half of all captions, half of all images
    {'image_to_text_recall@1': 0.5, 'text_to_image_recall@1': 0.5}
    """
    m = len(image_of_text)
    counts = np.bincount(_owners(image_of_text, n, m), minlength=n)
    metrics = {}
    for direction, own, among in (
        ("image_to_text", counts[counts > 0], m),
        ("text_to_image", np.ones(1), n),
    ):
        for k in ks:
            drawn = np.arange(min(k, among))
            missed = np.clip((among - own[:, None] - drawn) / (among - drawn), 0, 1).prod(1)
            metrics[f"{direction}_recall@{k}"] = float(np.mean(1 - missed))
    return metrics


def captions_of(image_of_text, n):
    """The texts of each of n images in order: int32[n, c], padded with -1, c at least 1."""
    image_of_text = np.asarray(image_of_text)
    counts = np.bincount(image_of_text, minlength=n)
    own = np.full((n, max(counts.max(), 1)), -1, np.int32)
    own[np.arange(own.shape[1]) < counts[:, None]] = np.argsort(image_of_text, kind="stable")
    return own


@partial(jax.jit, static_argnames="replicated")
def _rank_rows(queries, own, items, replicated=None):
    scores = _scores(queries, items)
    # The own score is read from the product that its rivals are in: computed apart it may differ
    # in its last bit, and an item would then beat or lose to its own copy.
    own_scores = jnp.where(own >= 0, jnp.take_along_axis(scores, own, 1, mode="clip"), -jnp.inf)
    best = own_scores.max(1, keepdims=True)
    is_best = (own_scores == best) & (own >= 0)
    first = jnp.where(is_best, own, len(items)).min(1, keepdims=True)
    index = jnp.arange(len(items))[None]
    before = (scores > best) | ((scores == best) & (index < first))
    found = jnp.where((own >= 0).any(1), 1 + before.sum(1), 0)
    return (_everywhere(found, replicated),)


@partial(jax.jit, static_argnames=("k", "replicated"))
def _top_rows(queries, items, k, replicated=None):
    scores, indices = jax.lax.top_k(_scores(queries, items), k)  # ties: the lower index first
    return _everywhere(indices, replicated), _everywhere(scores, replicated)


def _scores(queries, items):
    # TPUs multiply float32 in bfloat16 unless told otherwise: thousands of scores would tie.
    return jnp.matmul(queries, items.T, precision=jax.lax.Precision.HIGHEST)


def _everywhere(x, replicated):
    """Gather the rows, so that every process of a pod can read the whole result."""
    return x if replicated is None else jax.lax.with_sharding_constraint(x, replicated)


def _in_chunks(fn, rows, items, chunk, mesh, **static):
    """Run fn over chunks of `rows` (arrays of one length) against all items; NumPy results."""
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1.")
    if rows[0].shape[1] != items.shape[1]:
        raise ValueError(
            f"embeddings differ in width: {rows[0].shape[1]} and {items.shape[1]}; "
            "both must come from the same model."
        )
    devices = 1 if mesh is None else mesh.size
    total = len(rows[0])
    chunk = -(-min(chunk, total) // devices) * devices
    if mesh is None:
        put_rows = put_items = jnp.asarray
    else:
        replicated = NamedSharding(mesh, PartitionSpec())
        split = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
        put_rows, put_items = (
            partial(jax.device_put, device=split),
            partial(jax.device_put, device=replicated),
        )
        static["replicated"] = replicated
    items = put_items(items)
    parts = []
    for start in range(0, total, chunk):
        part = [x[start : start + chunk] for x in rows]
        pad = chunk - len(part[0])  # one shape, one compilation
        part = [put_rows(np.pad(x, ((0, pad), (0, 0)))) for x in part]
        # Fetched now rather than after the loop: else every chunk's scores may be in flight.
        done = jax.device_get(fn(*part, items, **static))
        parts.append([x[: chunk - pad] for x in done])
    return tuple(np.concatenate(x) for x in zip(*parts, strict=True))


def _embeddings(name, x):
    """x as float32[n, d] on the host, or a ValueError that says what is wrong with it."""
    x = np.asarray(x, np.float32)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"{name} has shape {list(x.shape)}; expected [n, d] with n > 0.")
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(x)} {name} embeddings are NaN or infinite (first: row "
            f"{bad.argmax()}); the model has diverged, or an input held NaN."
        )
    return x


def _owners(image_of_text, n, m):
    """image_of_text as int32[m] with every index in range; the diagonal for None."""
    if image_of_text is None:
        if n != m:
            raise ValueError(
                f"{n} images and {m} texts: give image_of_text, the image of each text."
            )
        return np.arange(m, dtype=np.int32)
    owners = np.asarray(image_of_text, np.int32)
    if owners.shape != (m,):
        raise ValueError(f"image_of_text has shape {list(owners.shape)}; expected [{m}].")
    if m and (owners.min() < 0 or owners.max() >= n):
        raise ValueError(
            f"image_of_text holds {owners.min()} to {owners.max()}, but there are {n} images."
        )
    return owners
