"""Host batches for training and evaluation, in a global order that no host count changes.

Global training batch s is samples [s*B, (s+1)*B) of the source's endless stream, shuffled anew
every epoch; host h of H holds rows [h*B/H, (h+1)*B/H) of it. Everything random is a function of
the seed and the sample's place in that stream, so the position is one integer.
"""

import hashlib
import json
import logging
from collections import Counter

import grain

from vlrep_jax.data.decoding import MAX_PIXELS
from vlrep_jax.data.loading import EvalLoader, TrainLoader
from vlrep_jax.data.order import order

_LOG = logging.getLogger(__name__)
_BAD_MINIMUM = 256  # samples to see before their bad share is judged


def train_batches(
    source,
    *,
    transform,
    caption,
    tokenizer,
    context_length,
    batch_size,
    seed,
    process_index=0,
    process_count=1,
    num_threads=2,
    prefetch=4,
    max_bad_fraction=0.1,
    max_pixels=MAX_PIXELS,
    cache=False,
):
    """Endless training batches of one host.

    Args:
        source: an entry of SOURCES.
        transform: (uint8[h, w, 3], rng) -> uint8[size, size, 3].
        caption: (sample, rng) -> str.
        tokenizer: an entry of TOKENIZERS.
        context_length: l, tokens of a text.
        batch_size: B, the global batch size; b = B / process_count.
        seed: of order, captions and augmentation.
        process_index, process_count: h and H.
        num_threads, prefetch: threads that make batches, and batches they may be ahead.
        max_bad_fraction: share of bad samples, of all seen, beyond which iteration stops.
        max_pixels: larger pictures are bad samples.
        cache: keep every decoded picture in memory (pixels times 3 bytes): for small data sets.

    Returns:
        Batches; each is a dict of `image` uint8[b, size, size, 3], `text` int32[b, l],
        `pair_ids` int32[b], `bad` bool[b] (the row is a replacement) and `truncated` bool[b].

        Rows of equal `pair_ids` show the same: the 31-bit hash of the sample's identity or, where
        its source knows none, of its caption with case and spacing ignored. It does not see that
        two wordings mean the same, nor one picture under two keys; at 32,768 rows a quarter of
        all batches hold one accidental pair, which costs that one negative.

    Raises:
        ValueError: batch_size cannot be divided among the hosts, or the source is empty.
    """
    rows = _rows_per_host(batch_size, process_index, process_count)
    if not len(source):
        raise ValueError("The source has no samples.")
    load = TrainLoader(
        source, transform, caption, tokenizer, context_length, seed, max_pixels, cache
    )
    described = {
        "source": source.fingerprint(),
        "transform": _described(transform),
        "caption": _described(caption),
        "tokenizer": tokenizer.fingerprint(),
        "context_length": context_length,
        "batch_size": batch_size,
        "seed": seed,
    }

    def load_batch(number, indices):
        return load((number * process_count + process_index) * rows, indices)

    mine = order(source, seed).batch(rows)[process_index::process_count]
    batches = mine.map_with_index(load_batch)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    iterator = iter(batches.to_iter_dataset(options))
    fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return Batches(iterator, fingerprint, max_bad_fraction)


class Batches:
    """Iterator over training batches whose position can be saved and restored.

    Attributes:
        bad_reasons: Counter of the reasons of bad samples in the batches returned so far.
    """

    def __init__(self, iterator, fingerprint, max_bad_fraction):
        self._iterator = iterator
        self._fingerprint = fingerprint
        self._max_bad_fraction = max_bad_fraction
        self._next_batch = 0
        self._seen = 0
        self.bad_reasons = Counter()

    def __iter__(self):
        return self

    def __next__(self):
        """The next batch.

        Raises:
            ValueError: more than max_bad_fraction of all samples are bad.
        """
        batch, reasons = next(self._iterator)
        self._next_batch += 1
        self._seen += len(batch["bad"])
        for reason, key in reasons:
            if not self.bad_reasons[reason]:
                _LOG.warning("bad sample %s: %s (replaced; more are only counted)", key, reason)
            self.bad_reasons[reason] += 1
        bad = self.bad_reasons.total()
        if self._seen >= _BAD_MINIMUM and bad > self._max_bad_fraction * self._seen:
            raise ValueError(
                f"{bad} of {self._seen} samples are bad ({dict(self.bad_reasons)}), more than "
                f"max_bad_fraction={self._max_bad_fraction}."
            )
        return batch

    def state(self):
        """The position as a small JSON value for `restore`, equal on every host."""
        return {"next_batch": self._next_batch, "fingerprint": self._fingerprint}

    def restore(self, state):
        """Continues at a saved position, also with another number of hosts.

        Raises:
            ValueError: the state was saved by a pipeline with another source, transform, caption
                choice, tokenizer, batch size or seed.
        """
        if state["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"The saved data position (batch {state['next_batch']}) belongs to another "
                f"pipeline ({state['fingerprint'][:12]}, now {self._fingerprint[:12]}): source, "
                "transform, captions, tokenizer, batch size or seed changed. Restore these, or "
                "start in a new work directory."
            )
        self._next_batch = int(state["next_batch"])
        self._iterator.set_state({"next_index": self._next_batch})

    def close(self):
        """Stops the threads."""
        self._iterator.close()


def eval_batches(
    source,
    *,
    preprocess,
    batch_size,
    process_index=0,
    process_count=1,
    tokenizer=None,
    context_length=None,
    num_threads=2,
    prefetch=2,
    max_pixels=MAX_PIXELS,
):
    """One pass over a source in order, in full batches, for one host.

    Args:
        preprocess: a `preprocess.Preprocess`.
        batch_size, process_index, process_count: as for `train_batches`.
        tokenizer, context_length: given, batches also hold `text` int32[b, l], the first caption.

    Returns:
        EvalBatches, an iterable with a length; each batch is a dict of
        `image` uint8[b, size, size, 3], `index` int32[b] (the sample's number; -1 for padding)
        and `weights` float32[b], 0 for padding and pictures that cannot be decoded, else 1.

    Raises:
        ValueError: batch_size cannot be divided among the hosts.
    """
    rows = _rows_per_host(batch_size, process_index, process_count)

    load = EvalLoader(source, preprocess, tokenizer, context_length, rows, max_pixels)

    def load_batch(number):
        return load(number * batch_size + process_index * rows)

    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(load_batch)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return EvalBatches(batches, options)


class EvalBatches:
    """Evaluation batches; every iteration starts anew.

    Attributes:
        bad_reasons: Counter of the reasons of undecodable pictures in the newest iteration.
    """

    def __init__(self, batches, options):
        self._batches, self._options = batches, options
        self.bad_reasons = Counter()

    def __len__(self):
        return len(self._batches)

    def __iter__(self):
        self.bad_reasons = Counter()
        for batch, reasons in self._batches.to_iter_dataset(self._options):
            for reason, key in reasons:
                if not self.bad_reasons[reason]:
                    _LOG.warning(
                        "bad picture %s: %s (taken as black; more are only counted)", key, reason
                    )
                self.bad_reasons[reason] += 1
            yield batch


def _rows_per_host(batch_size, process_index, process_count):
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must be in [0, {process_count}).")
    if batch_size < 1 or batch_size % process_count:
        nearest = max(batch_size - batch_size % process_count, process_count)
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of {process_count} hosts; "
            f"the nearest is {nearest}."
        )
    return batch_size // process_count


def _described(function):
    """A function and its bound options as a JSON value."""
    options = getattr(function, "keywords", {})
    function = getattr(function, "func", function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return [function.__module__, name, json.loads(json.dumps(options, default=repr))]
