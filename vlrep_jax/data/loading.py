"""From samples to the arrays of one batch; which samples, and in what order, `pipeline.py` says."""

import zlib
from collections import Counter

import numpy as np

from vlrep_jax.data.decoding import BadImage, decode

_TRIES = 16


class TrainLoader:
    """Makes the batch that starts at a given place of the global stream."""

    def __init__(
        self, source, transform, caption, tokenizer, context_length, seed, max_pixels, cache
    ):
        self._source, self._transform, self._caption = source, transform, caption
        self._tokenizer, self._context_length, self._seed = tokenizer, context_length, seed
        self._max_pixels = max_pixels
        self._cached = {} if cache else None

    def __call__(self, first_position, indices):
        texts, images, pair_ids, bad, reasons = [], [], [], [], []
        for offset, found in enumerate(self._decoded([int(i) for i in indices])):
            rng = np.random.default_rng((self._seed, first_position + offset))
            sample, text, image, row_reasons = self._good(found, rng)
            texts.append(text)
            images.append(self._transform(image, rng))
            pair_ids.append(_pair_id(sample, text))
            bad.append(bool(row_reasons))
            reasons.extend(row_reasons[:1])
        ids, truncated = self._tokenizer.encode_batch(texts, self._context_length)
        batch = {
            "image": np.stack(images),
            "text": ids,
            "pair_ids": np.asarray(pair_ids, np.int32),
            "bad": np.asarray(bad, bool),
            "truncated": truncated,
        }
        return batch, reasons

    def _good(self, found, rng):
        """(sample, caption, picture, reasons); what is bad gives way to a random other one."""
        reasons = []
        for _ in range(_TRIES):
            sample, image = found
            text = "" if isinstance(image, BadImage) else self._caption(sample, rng).strip()
            if text:
                return sample, text, image, reasons
            reasons.append((getattr(image, "reason", "no_caption"), sample.key))
            # A draw, not the next in line: bad samples often lie side by side.
            (found,) = self._decoded([int(rng.integers(len(self._source)))])
        raise ValueError(
            f"{_TRIES} samples in a row are bad ({dict(Counter(r for r, _ in reasons))}), "
            f"among them {reasons[0][1]}."
        )

    def _decoded(self, indices):
        """(sample, picture or BadImage) of each index."""
        cached = self._cached
        missing = indices if cached is None else [i for i in indices if i not in cached]
        fresh = {}
        for index, sample in zip(missing, self._source.__getitems__(missing), strict=True):
            image = _decode_or_bad(sample, self._max_pixels)
            fresh[index] = (
                (sample, image) if cached is None else (sample._replace(image=b""), image)
            )
        if cached is not None:
            cached.update(fresh)
            fresh = cached
        return [fresh[index] for index in indices]


class EvalLoader:
    """Makes the batch of `rows` samples from a given one on, padded behind the source's end."""

    def __init__(self, source, preprocess, tokenizer, context_length, rows, max_pixels):
        self._source, self._preprocess = source, preprocess
        self._tokenizer, self._context_length = tokenizer, context_length
        self._rows, self._max_pixels = rows, max_pixels

    def __call__(self, first):
        """The batch, and (reason, key) of each picture that cannot be decoded."""
        rows, size = self._rows, self._preprocess.size
        indices = list(range(first, min(first + rows, len(self._source))))
        samples = self._source.__getitems__(indices) if indices else []
        images = np.zeros((rows, size, size, 3), np.uint8)
        weights, index = np.zeros(rows, np.float32), np.full(rows, -1, np.int32)
        reasons = []
        for row, sample in enumerate(samples):
            index[row] = indices[row]
            image = _decode_or_bad(sample, self._max_pixels)
            if isinstance(image, BadImage):
                reasons.append((image.reason, sample.key))
                continue
            images[row] = self._preprocess(image)
            weights[row] = 1
        batch = {"image": images, "weights": weights, "index": index}
        if self._tokenizer is not None:
            texts = [sample.captions[0] if sample.captions else "" for sample in samples]
            texts += [""] * (rows - len(texts))
            batch["text"] = self._tokenizer(texts, self._context_length)
        return batch, reasons


def _decode_or_bad(sample, max_pixels):
    if sample.problem:
        return BadImage(sample.problem)
    try:
        return decode(sample.image, max_pixels)
    except BadImage as error:
        return error.with_traceback(None)  # a kept traceback would keep the bytes alive


def _pair_id(sample, text):
    meaning = f"identity {sample.identity}" if sample.identity else " ".join(text.lower().split())
    return zlib.crc32(meaning.encode()) & 0x7FFFFFFF
