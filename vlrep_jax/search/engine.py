"""What answers queries: an index that is open, searched exactly or by its graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlrep_jax.search import approximate
from vlrep_jax.search.exact import Exact
from vlrep_jax.search.store import Picture, Store, reading

# How much of what is not wanted is taken from what is; docs/applications/search.md has the figures.
WITHOUT = 0.75

_DEEPEST = 2000  # results: for more of them exact search is hardly slower than a graph


class Hit(NamedTuple):
    """A picture that was found.

    Attributes:
      rank: from 1.
      score: cosine of the angle between its embedding and the query's.
      picture: `store.Picture`.
    """

    rank: int
    score: float
    picture: Picture


class Engine:
    """Searches an index as it is when this is made.

    >>> engine = Engine("INDEX")
    >>> hits = engine.search(make_query([clip.encode_text(["a red heart"])[0]]), k=5)
    >>> hits[0].picture.found.name, hits[0].score

    An engine holds the index's files open; `with Engine(...) as engine` closes them.

    Args:
      path: of the index.
      exact: do not use its graph of near neighbours, where it has one.
      mesh: devices that exact search is split over; None is the default device.

    Attributes:
      store: open, for the thread that made this.
      ids: int64[n] of all pictures, in the order of the index.
      recall: of its graph, where that is used; else None.

    Raises:
      FileNotFoundError: there is no index.
      ValueError: it is damaged, unfinished or of another version.
    """

    def __init__(self, path: str | Path, *, exact: bool = False, mesh=None):
        self.store: Store = reading(path)
        self._embeddings, self.ids, self._rows = self.store.snapshot()
        self._exact = Exact(self._embeddings, self._rows, mesh=mesh)
        self._graph = None if exact else approximate.opened(self.store)
        self.recall = self._graph and self._graph.recall

    def __len__(self):
        return len(self.ids)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.store.close()

    def best(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int64[q, k] and scores float64[q, k] of the best for float32[q, d], best first."""
        found = None
        if self._graph is not None and k <= _DEEPEST:
            found = self._graph.search(queries, min(k, len(self)), self._embeddings)
        rows, scores = found or self._exact.search(queries, k)
        # Rounded to float32, a vector may be longer than 1 by some 1e-8.
        return self.ids[np.searchsorted(self._rows, rows)], np.clip(scores, -1, 1)

    def search(self, query: np.ndarray, k: int) -> list[Hit]:
        """The k best pictures for float32[d], best first; fewer where there are no more."""
        (ids,), (scores,) = self.best(query[None], k)
        pictures = self.store.pictures(ids.tolist())
        pairs = enumerate(zip(ids.tolist(), scores.tolist(), strict=True), 1)
        return [Hit(rank, score, pictures[id]) for rank, (id, score) in pairs if id in pictures]

    def embedding(self, id: int) -> np.ndarray:
        """float32[d] of a picture.

        Raises:
          KeyError: there is none of this id.
        """
        place = np.searchsorted(self.ids, id)
        if place == len(self.ids) or self.ids[place] != id:
            raise KeyError(id)
        return np.array(self._embeddings[self._rows[place]])


def make_query(wanted: Sequence[np.ndarray], unwanted: Sequence[np.ndarray] = ()) -> np.ndarray:
    """One query from what pictures shall be like, and what not.

    Args:
      wanted, unwanted: L2-normalised float32[d] of texts or pictures.

    Returns:
      The mean of what is wanted minus WITHOUT times that of what is not, L2-normalised float32[d].

    Raises:
      ValueError: nothing is wanted, or nothing is left of it.
    """
    if not len(wanted):
        raise ValueError("nothing to look for: give a text, a picture, or both.")
    vector = np.mean(np.asarray(wanted, np.float64), axis=0)
    if len(unwanted):
        vector = vector - WITHOUT * np.mean(np.asarray(unwanted, np.float64), axis=0)
    norm = np.linalg.norm(vector)
    if not norm > 1e-6:
        raise ValueError("what is wanted and what is not cancel out: nothing is left to look for.")
    return np.float32(vector / norm)
