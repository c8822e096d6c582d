"""Makes an index, or brings it up to date: what is new or changed is embedded, nothing else.

`listing` says what there is, `loading` reads it, `writer` keeps it.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from vlrep_jax import models
from vlrep_jax.data.decoding import BadImage
from vlrep_jax.metrics import Progress
from vlrep_jax.search import approximate
from vlrep_jax.search.listing import Found, find_pictures
from vlrep_jax.search.loading import Loaded, load
from vlrep_jax.search.writer import Counts, Embedded, Writer, writing
from vlrep_jax.weights import Pretrained
from vlrep_jax.weights.encoding import encoder_of

CHUNK = 256  # pictures embedded, and written, as one


class Built(NamedTuple):
    """What `build` did.

    Attributes:
      counts: of pictures added, changed, removed and unchanged.
      embedded: pictures that went through the model in this run.
      unreadable: (name, reason) of what was found and is no picture, in this run or before.
      problems: a line about each archive that could not be read to its end.
      recall: of the graph of near neighbours, see `approximate.update`; None where there is none.
      seconds: of all.
    """

    counts: Counts
    embedded: int
    unreadable: list[tuple[str, str]]
    problems: list[str]
    recall: dict | None
    seconds: float


def build(
    path: str | Path,
    model: Pretrained,
    about_model: dict,
    images: Sequence[str],
    *,
    graph_from: int | None = None,
) -> Built:
    """Makes an index of pictures, or makes one that is there hold exactly these.

    A picture that was moved or copied, or only has another date, is told by its bytes and not
    embedded again. A run that was killed is continued: all but its last chunk is there.

    Args:
      path: directory of the index.
      model: embeds the pictures.
      about_model: of it, as `described` gives it.
      images: patterns, as for `find_pictures`.
      graph_from: pictures from which on there is a graph of near neighbours, for which usearch
        has to be installed; None for no graph.

    Raises:
      FileNotFoundError: a pattern stands for no picture; the index stays as it was.
      ValueError: the index was made by another model, or another process writes it; a picture's
        embedding is not finite; or nothing that was found is a picture.
    """
    started_s = time.monotonic()
    found, problems = find_pictures(images)
    width = _width(model)
    with writing(Path(path), about_model, width) as writer:
        todo = writer.begin(found)
        embedded = _embed(writer, model, todo) if todo else 0
        unreadable = writer.unreadable()
        if len(unreadable) >= len(found):
            reasons = dict(Counter(reason for _, reason in unreadable))
            raise ValueError(
                f"none of the {len(found)} files that were found is a picture that can be read "
                f"({reasons}); nothing was changed."
            )
        counts = writer.publish([_absolute(pattern) for pattern in images])
        total, recall = counts.added + counts.changed + counts.unchanged, None
        if graph_from is None or total < max(graph_from, 1):
            writer.set_graph(None)
        else:
            recall = approximate.update(writer, model)
    return Built(counts, embedded, unreadable, problems, recall, time.monotonic() - started_s)


def _width(model):
    size, _ = models.input_sizes(model.model)
    pictures = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    encode = lambda p, x: model.model.apply({"params": p}, x, method="encode_image")  # noqa: E731
    return jax.eval_shape(encode, model.params, pictures).shape[1]


def _absolute(pattern):
    head, colon, tail = pattern.partition(":")
    return (
        f"{head}:{os.path.abspath(tail)}" if head == "tar" and colon else os.path.abspath(pattern)
    )


def _embed(writer: Writer, model: Pretrained, todo: Sequence[Found]) -> int:
    """Embeds what is to be done, chunk by chunk; returns how many went through the model."""
    encode = _encoder(model)
    progress = Progress(len(todo), unit="picture")
    done, embedded, started_s = 0, 0, time.monotonic()
    known = writer.digests()
    try:
        for loaded, unreadable, gone in _chunks(known, model.preprocess, todo):
            rows, count = _embeddings(writer, known, loaded, encode)
            writer.add(rows, unreadable, gone)
            known.update(one.digest for one in loaded)
            done += len(loaded) + len(unreadable) + len(gone)
            embedded += count
            progress.show({"pictures/s": done / (time.monotonic() - started_s)})
            progress.advance(done)
    finally:
        progress.close()
    return embedded


def _encoder(model: Pretrained):
    """uint8[n, size, size, 3] of up to a chunk -> float32[n, d], by all devices of this process."""
    encoder = encoder_of(model, CHUNK)
    rows = encoder.batch_size

    def encode(pixels):
        images = np.zeros((rows, *pixels.shape[1:]), np.uint8)
        images[: len(pixels)] = pixels
        index = np.where(np.arange(rows) < len(pixels), np.arange(rows), -1).astype(np.int32)
        return encoder.images([{"image": images, "index": index}])

    return encode


def _chunks(known, preprocess, todo) -> Iterator[tuple[list[Loaded], list, list[Found]]]:
    """(loaded, unreadable, gone) of each chunk; the next is read while one is embedded."""

    def outcome(found):
        try:
            return load(found, preprocess, known)
        except FileNotFoundError:
            return None
        except BadImage as error:
            return error.reason

    parts = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    with ThreadPoolExecutor(_cores(), thread_name_prefix="pictures") as pool:
        running = [pool.submit(outcome, found) for found in parts[0]]
        for number, part in enumerate(parts):
            results = [future.result() for future in running]
            following = parts[number + 1] if number + 1 < len(parts) else []
            running = [pool.submit(outcome, found) for found in following]
            loaded = [one for one in results if isinstance(one, Loaded)]
            pairs = list(zip(part, results, strict=True))
            bad = [(found, reason) for found, reason in pairs if isinstance(reason, str)]
            try:
                yield loaded, bad, [found for found, one in pairs if one is None]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _embeddings(writer, known, loaded, encode) -> tuple[list[Embedded], int]:
    """What to add for pictures that were read, and how many of them had to be encoded."""
    fresh = {}  # pictures of equal bytes are encoded once
    for one in loaded:
        if one.digest not in known:
            fresh.setdefault(one.digest, one)
    vectors = {}
    if fresh:
        encoded = encode(np.stack([one.pixels for one in fresh.values()]))
        for digest, vector in zip(fresh, encoded, strict=True):
            if not np.isfinite(vector).all():
                name = fresh[digest].found.name
                raise ValueError(f"the embedding of {name} is not finite: the model has diverged.")
            vectors[digest] = vector
    rows = []
    for one in loaded:
        if one.digest in fresh:
            first = fresh[one.digest]
            whole = first.width, first.height, first.thumbnail, vectors[one.digest]
        else:
            picture, vector = writer.same(one.digest)
            whole = picture.width, picture.height, None, vector
        rows.append(Embedded(one.found, one.digest, *whole))
    return rows, len(fresh)


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
