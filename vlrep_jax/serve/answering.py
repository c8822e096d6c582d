"""From texts, pictures and ids to pictures of an index: what runs in the thread of the model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlrep_jax.search.engine import Engine, make_query
from vlrep_jax.weights import Pretrained


class Ask(NamedTuple):
    """What one request looks for.

    Attributes:
      text, without: '' for none.
      pixels: uint8[size, size, 3] of an uploaded picture, or None.
      like: id of a picture of the index, or None.
      k: how many pictures.
    """

    text: str
    without: str
    pixels: np.ndarray | None
    like: int | None
    k: int


class Answers:
    """Answers batches of `Ask`.

    The model and the search run in three shapes each, padded: one request, a quarter of `batch`,
    and `batch`; so that nothing is compiled while people wait, and one person does not wait for
    the work of a batch.

    Args:
      batch: requests in the largest shape.
    """

    def __init__(self, engine: Engine, model: Pretrained, batch: int):
        self._engine, self._model, self._batch = engine, model, batch
        self._sizes = sorted({1, -(-batch // 4), batch})

    def warm(self, ks: Sequence[int]) -> None:
        """Compiles what requests for the best k will need."""
        size = self._model.preprocess.size
        pixels = np.zeros((size, size, 3), np.uint8)
        has_text = self._model.tokenizer is not None
        for count in self._sizes:
            for k in ks:
                texts = [f"{i}" * has_text for i in range(count)]  # of equal ones one is embedded
                self([Ask(text, "", pixels, None, k) for text in texts])

    def __call__(self, asks: Sequence[Ask]) -> list:
        """(ids, scores) of each, lists of the best k; or the exception that it ends with."""
        texts = list(dict.fromkeys(t for a in asks for t in (a.text, a.without) if t))
        try:
            vectors = dict(zip(texts, self._encoded("encode_text", texts), strict=True))
        except ValueError as error:  # the model has no tokenizer
            vectors = dict.fromkeys(texts, error)
        pictures = [a.pixels for a in asks if a.pixels is not None]
        uploaded = iter(self._encoded("encode_image", pictures))
        results = [self._query(ask, vectors, uploaded) for ask in asks]
        for k in sorted({ask.k for ask in asks}):
            places = [
                i
                for i, (ask, query) in enumerate(zip(asks, results, strict=True))
                if ask.k == k and isinstance(query, np.ndarray)
            ]
            for start in range(0, len(places), self._batch):
                part = places[start : start + self._batch]
                # Padded by the first of them: all pictures tie for a query of zeros.
                padding = part[:1] * (self._size(len(part)) - len(part))
                queries = np.stack([results[i] for i in (*part, *padding)])
                ids, scores = self._engine.best(queries, k)
                for row, i in enumerate(part):
                    results[i] = ids[row].tolist(), scores[row].tolist()
        return results

    def _query(self, ask, vectors, uploaded):
        """float32[d] of a request, or why there is none."""
        parts = [vectors[text] for text in (ask.text, ask.without) if text]
        pixels = None if ask.pixels is None else next(uploaded)
        try:
            for part in parts:
                if isinstance(part, ValueError):
                    return part
            wanted = parts[: bool(ask.text)]
            wanted += [] if pixels is None else [pixels]
            wanted += [] if ask.like is None else [self._engine.embedding(ask.like)]
            return make_query(wanted, parts[bool(ask.text) :])
        except (ValueError, KeyError) as error:
            return error

    def _size(self, count):
        return next(size for size in self._sizes if size >= count)

    def _encoded(self, method, inputs):
        """Embeddings of texts or pictures, in batches of these shapes."""
        # Preprocessed once more, pixels of the right size stay as they are.
        padding = "" if method == "encode_text" else np.zeros_like(inputs[0]) if inputs else None
        rows = []
        for start in range(0, len(inputs), self._batch):
            part = inputs[start : start + self._batch]
            padded = part + [padding] * (self._size(len(part)) - len(part))
            rows.extend(getattr(self._model, method)(padded)[: len(part)])
        return rows
