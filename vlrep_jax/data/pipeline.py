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
import numpy as np

from vlrep_jax.data.decoding import MAX_PIXELS
from vlrep_jax.data.loading import EvalLoader, TrainLoader
from vlrep_jax.data.order import order
from vlrep_jax.data.picture import decoder_name, find_decoder
from vlrep_jax.data.workers import WorkerBatches

_LOG = logging.getLogger(__name__)
ON_CHANGE = ("refuse", "continue")
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
    decoder="auto",
    num_workers=0,
    on_change="refuse",
    captions_per_image=1,
    answers=(),
):
    """Endless training batches of one host.

    Args:
        source: an entry of SOURCES.
        transform: (Picture or uint8[h, w, 3], rng) -> uint8[size, size, 3].
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
        decoder: one of `picture.DECODERS`.
        num_workers: processes that make batches; 0 leaves it to num_threads of this process.
        on_change: one of ON_CHANGE: what happens to a position that another pipeline saved.
        captions_per_image: k neighbouring rows are one picture, each augmented anew and with
            another of its captions (those that have fewer repeat some), under one of `pair_ids`.
        answers: n texts; a row then also has what each would get as an answer to its question, by
            the label `answers` of its sample.

    Returns:
        Batches; each is a dict of `image` uint8[b, size, size, 3], `text` int32[b, l],
        `pair_ids` int32[b], `bad` bool[b] (the row is a replacement) and `truncated` bool[b]; with
        answers also `answers` float32[b, n] in [0, 1].

        Rows of equal `pair_ids` show the same: the 31-bit hash of the sample's identity or, where
        its source knows none, of its caption with case and spacing ignored. It does not see that
        two wordings mean the same, nor one picture under two keys; at 32,768 rows a quarter of
        all batches hold one accidental pair, which costs that one negative.

    Raises:
        ValueError: batch_size cannot be divided among the hosts, the source is empty, or an option
            is unknown.
    """
    rows = _rows_per_host(batch_size, process_index, process_count)
    if captions_per_image < 1 or rows % captions_per_image:
        raise ValueError(
            f"captions_per_image={captions_per_image} must divide the {rows} rows of a host."
        )
    if on_change not in ON_CHANGE:
        raise ValueError(
            f"on_change={on_change!r} is unknown; it is one of {', '.join(ON_CHANGE)}."
        )
    if num_workers < 0 or (num_workers and cache):
        raise ValueError(
            f"num_workers={num_workers} with cache={cache}: worker processes (0 for none) share no "
            "cache of pictures; set either to 0 or False."
        )
    if not len(source):
        raise ValueError("The source has no samples.")
    decoder = find_decoder(decoder)
    load = TrainLoader(
        source,
        transform,
        caption,
        tokenizer,
        context_length,
        seed,
        max_pixels,
        cache,
        decoder,
        captions_per_image,
        answers,
    )
    described = {
        "source": source.fingerprint(),
        "transform": _described(transform),
        "caption": _described(caption),
        "tokenizer": tokenizer.fingerprint(),
        "context_length": context_length,
        "batch_size": batch_size,
        "seed": seed,
        "decoder": decoder,
        "captions_per_image": captions_per_image,
    }

    if answers:
        described["answers"] = list(answers)

    def first_position(number):
        return (number * process_count + process_index) * rows

    taken = order(source, seed, batch_size // captions_per_image)
    mine = taken.batch(rows // captions_per_image)[process_index::process_count]
    if captions_per_image > 1:
        mine = mine.map(lambda indices: np.repeat(indices, captions_per_image))
    if num_workers:
        iterator = WorkerBatches(
            load,
            mine.__getitem__,
            first_position,
            rows=rows,
            count=num_workers,
            prefetch=prefetch,
        )
    else:
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
        batches = mine.map_with_index(lambda number, indices: load(first_position(number), indices))
        iterator = _ThreadBatches(iter(batches.to_iter_dataset(options)))
    fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    makers = f"{num_workers} worker processes" if num_workers else f"{num_threads} threads"
    summary = f"Training pictures are decoded by {decoder_name(decoder)}, in {makers}."

    def keys(number):
        return [sample.key for sample in source.__getitems__([int(i) for i in mine[number]])]

    return Batches(iterator, fingerprint, max_bad_fraction, on_change, summary, keys)


class _ThreadBatches:
    """A Grain iterator with the interface of `WorkerBatches`."""

    def __init__(self, iterator):
        self._iterator = iterator

    def __next__(self):
        return next(self._iterator)

    def go_to(self, number):
        self._iterator.set_state({"next_index": number})

    def close(self):
        self._iterator.close()


class Batches:
    """Iterator over training batches whose position can be saved and restored.

    Attributes:
        bad_reasons: Counter of the reasons of bad samples in the batches returned so far.
        summary: a line on how they are made.
    """

    def __init__(self, iterator, fingerprint, max_bad_fraction, on_change, summary, keys):
        self.summary, self._keys = summary, keys
        self._iterator = iterator
        self._fingerprint = fingerprint
        self._max_bad_fraction, self._on_change = max_bad_fraction, on_change
        self._next_batch = 0
        self._bad_shards = Counter()
        self._seen = 0
        self.bad_reasons = Counter()

    def __iter__(self):
        return self

    def __next__(self):
        """The next batch.

        Raises:
            ValueError: more than max_bad_fraction of all samples are bad.
            WorkerDied: a worker process ended.
        """
        batch, reasons = next(self._iterator)
        self._next_batch += 1
        self._seen += len(batch["bad"])
        for reason, key, shard in reasons:
            self._bad_shards[shard] += 1
            if not self.bad_reasons[reason]:
                _LOG.warning("bad sample %s: %s (replaced; more are only counted)", key, reason)
            self.bad_reasons[reason] += 1
        bad = self.bad_reasons.total()
        if self._seen >= _BAD_MINIMUM and bad > self._max_bad_fraction * self._seen:
            raise ValueError(
                f"{bad} of {self._seen} samples are bad ({dict(self.bad_reasons)}), more than "
                f"max_bad_fraction={self._max_bad_fraction}.{self._worst_shards()}"
            )
        return batch

    def _worst_shards(self):
        worst = [(name, n) for name, n in self._bad_shards.most_common(5) if name]
        return f" Most are in {', '.join(f'{name} ({n})' for name, n in worst)}." if worst else ""

    def keys(self, number):
        """Keys of the samples of a batch, the bad ones as they are; they are read again."""
        return self._keys(number)

    def state(self):
        """The position as a small JSON value for `restore`, equal on every host."""
        return {"next_batch": self._next_batch, "fingerprint": self._fingerprint}

    def restore(self, state):
        """Continues at a saved position, also with another number of hosts.

        Raises:
            ValueError: the state was saved by a pipeline with another source, transform, caption
                choice, tokenizer, batch size, seed or decoder, and on_change is 'refuse'.
        """
        if state["fingerprint"] != self._fingerprint:
            changed = (
                f"The saved data position (batch {state['next_batch']}) belongs to another "
                f"pipeline ({state['fingerprint'][:12]}, now {self._fingerprint[:12]}): source, "
                "transform, captions, tokenizer, batch size, seed or decoder changed."
            )
            if self._on_change == "refuse":
                raise ValueError(
                    f"{changed} Restore these, start in a new work directory, or set "
                    "config.data.on_change='continue'."
                )
            _LOG.warning("%s on_change='continue': going on at that batch of this one.", changed)
        self._next_batch = int(state["next_batch"])
        self._iterator.go_to(self._next_batch)

    def close(self):
        """Stops the threads or worker processes."""
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
