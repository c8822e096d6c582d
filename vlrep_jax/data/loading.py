"""From samples to the arrays of one batch; which samples, and in what order, `pipeline.py` says."""

import zlib
from collections import Counter

import numpy as np

from vlrep_jax.answers import accuracies, normalize
from vlrep_jax.data.caption_choice import not_blank, of_source, one_of_each
from vlrep_jax.data.decoding import BadImage, decode
from vlrep_jax.data.picture import Picture
from vlrep_jax.data.sources.sample import shard_of

_TRIES = 16


class TrainLoader:
    """Makes rows of batches; it can be pickled and holds no decoded picture when it is."""

    def __init__(
        self,
        source,
        transform,
        caption,
        tokenizer,
        context_length,
        seed,
        max_pixels,
        cache,
        decoder,
        captions_per_image=1,
        answers=(),
    ):
        self._source, self._transform = source, transform
        self._caption = of_source(source, caption)
        self._captions_per_image = captions_per_image
        self._answers = {answer: number for number, answer in enumerate(answers)}
        self._tokenizer, self._context_length, self._seed = tokenizer, context_length, seed
        self._max_pixels, self._decoder = max_pixels, decoder
        self._cached = {} if cache else None

    def __call__(self, first_position, indices):
        """Rows of consecutive places of the global stream.

        Args:
            first_position: of the first of them in the stream.
            indices: n numbers of samples; with several captions of a picture, each as often.

        Returns:
            The arrays that `pipeline.train_batches` describes, of n rows, and (reason, key, shard)
            of each sample that was replaced.
        """
        rows = self._rows(first_position, [int(i) for i in indices])
        texts, images, pair_ids, bad, reasons, scores = [], None, [], [], [], []
        for number, row in enumerate(rows):
            said, text, image, row_reasons = self._good(*row)
            if images is None:
                images = np.empty((len(rows), *image.shape), image.dtype)
            # One by one, while the picture is in the processor's cache and its memory of use again.
            images[number] = image
            texts.append(text)
            pair_ids.append(_pair_id(said, text))
            if self._answers:
                scores.append(self._scores(said))
            bad.append(bool(row_reasons))
            reasons.extend(row_reasons[:1])
        ids, truncated = self._tokenizer.encode_batch(texts, self._context_length)
        batch = {
            "image": images,
            "text": ids,
            "pair_ids": np.asarray(pair_ids, np.int32),
            "bad": np.asarray(bad, bool),
            "truncated": truncated,
        }
        return batch | ({"answers": np.stack(scores)} if scores else {}), reasons

    def _scores(self, sample):
        """float32[n]: what each of the known answers would get of the sample's annotators."""
        scores = np.zeros(len(self._answers), np.float32)
        given = sample.labels.get("answers")
        if not given:
            held = f"no label 'answers', only {sorted(sample.labels)}" if given is None else "none"
            raise ValueError(
                f"A model with answers learns from those of annotators, and {sample.key} of the "
                f"source has {held}; the source 'vqa' reads them from annotations=FILE."
            )
        for answer, score in accuracies(given).items():
            number = self._answers.get(answer, self._answers.get(normalize(answer)))
            if number is not None:
                scores[number] = score
        return scores

    def _rows(self, first_position, indices):
        """(index, sample, the sample with the captions to choose among, rng) of each row.

        What needs no pixel is done for all rows at once: between two pictures, whose pixels have
        emptied the processor's cache, it takes ten times as long.
        """
        rows, times = [], self._captions_per_image
        for position, (index, sample) in enumerate(self._samples(indices), first_position):
            said = self._one_caption(sample, *divmod(position, times)) if times > 1 else sample
            rows.append((index, sample, said, np.random.default_rng((self._seed, position))))
        return rows

    def _one_caption(self, sample, draw, number):
        """Of one draw of a picture, the row with its caption of that number."""
        # Its rows are positives of each other, whatever each of them says.
        first = "".join(not_blank(sample)[:1])
        sample = sample._replace(identity=sample.identity or " ".join(first.lower().split()))
        return one_of_each(sample, np.random.default_rng((self._seed, draw, 1)), number)

    def _good(self, index, sample, said, rng):
        """(sample, caption, pixels, reasons); what is bad gives way to a random other one.

        `said` is the sample with the captions to choose among.
        """
        reasons = []
        for _ in range(_TRIES):
            try:
                picture = self._picture(index, sample)
                text = self._caption(said, rng).strip()
                if not text:
                    raise BadImage("no_caption")
                return said, text, self._transform(picture, rng), reasons
            except BadImage as error:
                reasons.append((error.reason, sample.key, shard_of(self._source, index, sample)))
            # A draw, not the next in line: bad samples often lie side by side.
            ((index, sample),) = self._samples([int(rng.integers(len(self._source)))])
            said = sample
        raise ValueError(
            f"{_TRIES} samples in a row are bad ({dict(Counter(r for r, *_ in reasons))}), "
            f"among them {reasons[0][1]}."
        )

    def _samples(self, indices):
        """(index, sample) of each index."""
        cached = self._cached
        missing = [i for i in dict.fromkeys(indices) if cached is None or i not in cached]
        samples = dict(zip(missing, self._source.__getitems__(missing), strict=True))
        return [(i, samples[i] if i in samples else cached[i][0]) for i in indices]

    def _picture(self, index, sample):
        if self._cached is not None and index in self._cached:
            found = self._cached[index][1]
        else:
            found = _picture_or_bad(sample, self._decoder, self._max_pixels)
            if self._cached is not None:
                if not isinstance(found, BadImage):
                    try:
                        found.pixels()
                    except BadImage as error:
                        found = error.with_traceback(None)
                self._cached[index] = (sample._replace(image=b""), found)
        if isinstance(found, BadImage):
            raise BadImage(found.reason)
        return found

    def __getstate__(self):
        return vars(self) | {"_cached": None if self._cached is None else {}}


class EvalLoader:
    """Makes the batch of `rows` samples from a given one on, padded behind the source's end."""

    def __init__(self, source, preprocess, tokenizer, context_length, rows, max_pixels):
        self._source, self._preprocess = source, preprocess
        self._tokenizer, self._context_length = tokenizer, context_length
        self._rows, self._max_pixels = rows, max_pixels

    def __call__(self, first):
        """The batch, and (reason, key) of each picture that cannot be decoded."""
        rows = self._rows
        indices = list(range(first, min(first + rows, len(self._source))))
        samples = self._source.__getitems__(indices) if indices else []
        images = np.zeros((rows, *self._preprocess.shape), np.uint8)
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
    return _or_bad(sample, lambda: decode(sample.image, max_pixels))


def _picture_or_bad(sample, decoder, max_pixels):
    return _or_bad(sample, lambda: Picture(sample.image, decoder, max_pixels))


def _or_bad(sample, make):
    if sample.problem:
        return BadImage(sample.problem)
    try:
        return make()
    except BadImage as error:
        return error.with_traceback(None)  # a kept traceback would keep the bytes alive


def _pair_id(sample, text):
    meaning = f"identity {sample.identity}" if sample.identity else " ".join(text.lower().split())
    return zlib.crc32(meaning.encode()) & 0x7FFFFFFF
