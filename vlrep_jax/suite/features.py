"""Embeddings of a model for the splits of data sets: each picture and text goes through it once."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from vlrep_jax.data.decoding import BadImage
from vlrep_jax.data.labelled import Split
from vlrep_jax.encoder import Encoder
from vlrep_jax.metrics import Progress


class Features(NamedTuple):
    """A split as a model sees it, without the pictures that cannot be read.

    Attributes:
      image: float32[n, d], L2-normalised.
      labels: int64[n], numbers of classes; -1 for none.
      captions: m texts. image_of_caption: int64[m].
      unreadable: (key, reason) of each picture that was left out.
    """

    image: np.ndarray
    labels: np.ndarray
    captions: list[str]
    image_of_caption: np.ndarray
    unreadable: list[tuple[str, str]]

    def labelled(self) -> "Features":
        """Only the pictures that have a class, without captions."""
        known = self.labels >= 0
        return Features(self.image[known], self.labels[known], [], np.zeros(0, int), [])


def embed_split(encoder: Encoder, preprocess, split: Split, progress: Progress, done=0) -> Features:
    """Decodes and embeds a split; the next batch is decoded while one is embedded.

    Args:
      encoder: of the model.
      preprocess: its own, from the bytes of a picture file.
      progress: shows how many of the pictures are done, `done` being before.

    Raises:
      ValueError: none of the pictures can be read, or an embedding is not finite.
    """
    count, size = len(split.source), encoder.batch_size
    unreadable, kept = [], np.zeros(count, bool)

    def pixels(sample):
        try:
            return BadImage(sample.problem) if sample.problem else preprocess(sample.image)
        except BadImage as error:
            return error.with_traceback(None)  # a kept traceback would keep the bytes alive

    def begin(pool, start):
        samples = split.source.__getitems__(range(start, min(start + size, count)))
        return [sample.key for sample in samples], [pool.submit(pixels, one) for one in samples]

    def batches():
        started_s = time.monotonic()
        with ThreadPoolExecutor(_cores(), thread_name_prefix="pictures") as pool:
            following = begin(pool, 0)
            for start in range(0, count, size):
                keys, running = following
                following = begin(pool, start + size) if start + size < count else None
                image = np.zeros((size, *preprocess.shape), np.uint8)
                index = np.full(size, -1, np.int32)
                for row, (key, future) in enumerate(zip(keys, running, strict=True)):
                    found = future.result()
                    if isinstance(found, BadImage):
                        unreadable.append((key, found.reason))
                    else:
                        image[row], index[row], kept[start + row] = found, start + row, True
                yield {"image": image, "index": index}
                seen = start + len(keys)
                progress.show({"pictures/s": seen / (time.monotonic() - started_s)})
                progress.advance(done + seen)

    embedded = encoder.images(batches())
    if not len(embedded):
        key, reason = unreadable[0]
        raise ValueError(f"none of the {count} pictures can be read (the first: {key}, {reason}).")
    if not np.isfinite(embedded).all():
        raise ValueError("an embedding is not finite: the model has diverged.")
    place = np.cumsum(kept) - 1  # of each picture among those that were read
    owned = kept[split.image_of_caption]
    captions = [text for text, own in zip(split.captions, owned, strict=True) if own]
    owners = place[split.image_of_caption[owned]]
    return Features(embedded, split.labels[kept].astype(np.int64), captions, owners, unreadable)


def unreadable_line(model: str, split: str, unreadable: Sequence[tuple[str, str]]) -> str:
    """What to say of pictures that were left out."""
    named = ", ".join(f"{key} ({reason})" for key, reason in unreadable[:5])
    more = ", ..." if len(unreadable) > 5 else ""
    return f"{model}: left out {len(unreadable)} of {split} that cannot be read: {named}{more}"


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
