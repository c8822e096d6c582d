"""Exact search: the inner products of queries with every row, in chunks, over all devices.

Devices multiply in float32 and give candidates; these are scored again in float64 on the host. A
bound on float32's error says whether any other row could belong among the best; if so, more
candidates are taken. The ranking is therefore that of float64, and of equal scores the lower row
comes first.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vlrep_jax.parallel import BATCH_AXES, batch_sharding, replicated

CHUNK = 65_536  # rows multiplied at once, over all devices
RESIDENT_BYTES = 4 << 30  # embeddings of at most so many bytes stay on the devices
_SPARE = 40  # candidates beyond k: with these 24, a page of the browser, are taken of 64
_UNIT = 2.0**-24  # relative rounding error of float32


class Exact:
    """Searches a set of embeddings.

    Args:
      embeddings: float32[m, d], L2-normalised; may be mapped from a file.
      rows: int64[n], ascending: those that are searched.
      mesh: devices to split every chunk over; None is the default device.
      chunk: rows multiplied at once.
      resident_bytes: beyond so many, chunks are sent to the devices for every search.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        rows: np.ndarray,
        *,
        mesh: Mesh | None = None,
        chunk: int = CHUNK,
        resident_bytes: int = RESIDENT_BYTES,
    ):
        self._embeddings, self._rows, self._mesh = embeddings, rows, mesh
        devices = 1 if mesh is None else mesh.size
        chunk = min(chunk, max(len(rows), 1))
        self._chunk = -(-chunk // devices) * devices
        self._split = None if mesh is None else batch_sharding(mesh)
        held = 4 * self._chunk * self._count() * embeddings.shape[1]
        self._resident = [None] * self._count() if held <= resident_bytes else None

    def __len__(self):
        return len(self._rows)

    def _count(self):
        return -(-len(self._rows) // self._chunk)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each query, best first.

        Args:
          queries: float32[q, d], L2-normalised. Each new q and each new power of two that k needs
            is compiled for.
          k: how many; all n where there are fewer.

        Returns:
          Rows int64[q, k] and scores float64[q, k].

        Raises:
          ValueError: shapes do not fit, or k < 1.
        """
        queries = np.asarray(queries, np.float32)
        width = self._embeddings.shape[1]
        if queries.ndim != 2 or queries.shape[1] != width or k < 1:
            raise ValueError(
                f"queries have shape {list(queries.shape)} and k={k}; expected [q, {width}] and "
                "at least 1."
            )
        k, wanted = min(k, len(self)), _power(k + _SPARE)
        if not k:
            empty = np.zeros((len(queries), 0))
            return empty.astype(np.int64), empty
        while True:
            rows, scores, is_certain = self._ranked(queries, k, min(wanted, len(self)))
            if is_certain:
                return rows, scores
            wanted *= 4  # many rows are as good as equal

    def _ranked(self, queries, k, count):
        """The best k of `count` candidates, and whether no other row can be among them."""
        places, found = self._candidates(queries, count)
        rows = self._rows[places]
        scores = rescored(queries, self._embeddings, rows)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        rows, scores = (np.take_along_axis(x, order, 1) for x in (rows, scores))
        if count == len(self):
            return rows, scores, True
        # |float32 product - true product| of unit vectors, doubled for devices that emulate it.
        error = 2 * _UNIT * (queries.shape[1] + 2)
        return rows, scores, bool((scores[:, -1] > found[:, -1] + error).all())

    def _candidates(self, queries, count):
        """Places in `rows` of the best `count` by float32, int64[q, count], and their products."""
        # A power of two, so that growing indices and other k are seldom compiled for.
        size = min(_power(count), self._chunk)
        none = (np.full((len(queries), size), x, t) for x, t in ((-np.inf, "f4"), (-1, "i4")))
        # Where the results of a chunk will be: for another place it would be compiled again.
        everywhere = None if self._mesh is None else replicated(self._mesh)
        best, parts = tuple(jax.device_put(x, everywhere) for x in none), []
        for number in range(self._count()):
            chunk = self._on_devices(number)
            if count > self._chunk:  # more than a chunk has: no merging on the way
                parts.append(_merged(queries, *chunk, *best, mesh=self._mesh, size=size))
            else:
                best = _merged(queries, *chunk, *best, mesh=self._mesh, size=size)
        parts = jax.device_get(parts or [best])
        scores, places = (np.concatenate(x, axis=1) for x in zip(*parts, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return tuple(np.take_along_axis(x, order, 1) for x in (places, scores))

    def _on_devices(self, number):
        """Embeddings float32[chunk, d] and places int32[chunk], -1 for padding."""
        if self._resident is not None and self._resident[number] is not None:
            return self._resident[number]
        first = number * self._chunk
        rows = self._rows[first : first + self._chunk]
        held = np.zeros((self._chunk, self._embeddings.shape[1]), np.float32)
        is_one_piece = rows[-1] - rows[0] == len(rows) - 1
        taken = slice(rows[0], rows[-1] + 1) if is_one_piece else rows
        held[: len(rows)] = self._embeddings[taken]
        places = np.full(self._chunk, -1, np.int32)
        places[: len(rows)] = np.arange(first, first + len(rows))
        chunk = tuple(jax.device_put(x, self._split) for x in (held, places))
        if self._resident is not None:
            self._resident[number] = chunk
        return chunk


def rescored(queries: np.ndarray, embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products of each query with its rows, float64[q, k].

    Args:
      queries: float32[q, d].
      embeddings: float32[m, d].
      rows: int64[q, k].
    """
    found = np.empty(rows.shape, np.float64)
    for query, own, scores in zip(np.asarray(queries, np.float64), rows, found, strict=True):
        # Products of float32 are exact in float64, and equal rows are summed in the same order;
        # a matrix product may not do that, and copies of a picture would not tie.
        scores[:] = (np.asarray(embeddings[own], np.float64) * query[None]).sum(axis=1)
    return found


@partial(jax.jit, static_argnames=("mesh", "size"))
def _merged(queries, embeddings, places, best, best_places, *, mesh, size):
    """The best `size` of those so far and a chunk's: scores float32[q, size], places int32."""

    def local(queries, embeddings, places):
        # TPUs multiply float32 in bfloat16 unless told otherwise.
        scores = jnp.matmul(queries, embeddings.T, precision=jax.lax.Precision.HIGHEST)
        scores = jnp.where(places[None] >= 0, scores, -jnp.inf)
        scores, order = jax.lax.top_k(scores, min(size, len(places)))  # ties: the first place
        return scores, places[order]

    if mesh is not None:
        rows, columns = P(BATCH_AXES), P(None, BATCH_AXES)
        specs = dict(in_specs=(P(), rows, rows), out_specs=(columns, columns))
        local = jax.shard_map(local, mesh=mesh, **specs)
    scores, own_places = local(queries, embeddings, places)
    scores = jnp.concatenate([best, scores], axis=1)
    all_places = jnp.concatenate([best_places, own_places], axis=1)
    scores, order = jax.lax.top_k(scores, size)
    return scores, jnp.take_along_axis(all_places, order, axis=1)


def _power(n):
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()
