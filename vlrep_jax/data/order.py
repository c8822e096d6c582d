"""In which order training sees a source's samples: endless, and a function of the seed alone."""

import threading

import grain
import numpy as np

_ENDLESS = 2**62
_KEPT = 256  # permutations of windows and epochs
_FEW = 4096  # samples, of which an epoch's permutation is kept


def order(source, seed, batch_size=1):
    """The endless global order of a source's samples.

    Args:
        source: an entry of SOURCES. One with a method `order(seed)` is asked for its own; one that
            has `blocks()`, samples of each stretch that is read as one, for
            `windows(blocks, seed, batch_size)` where there are any.
        seed: int.
        batch_size: rows of a global batch, which an order may deal out to hosts.

    Returns:
        grain.MapDataset of sample numbers, whose element p is found without those before it.
    """
    if hasattr(source, "order"):
        return source.order(seed)
    blocks = source.blocks() if hasattr(source, "blocks") else ()
    if len(blocks):
        return source.windows(blocks, seed, batch_size)
    return uniform(len(source), seed)


def uniform(size, seed):
    """Every number below `size` once an epoch, in an order of the epoch's own."""
    # Grain finds a number by a walk over 2**16, which for a hundred takes a tenth of a decode.
    if 0 < size < _FEW:
        return windowed([size], size, seed)
    # Without a number Grain repeats up to the largest length, and a batch of one row overflows it.
    epochs = max(1, _ENDLESS // max(1, size))
    return grain.MapDataset.range(size).shuffle(seed=grain_seed(seed)).repeat(epochs)


def grain_seed(seed):
    """32 bits of any seed: what Grain takes."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def windowed(counts, window, seed, *, lanes=1, batch_size=1, opened=None):
    """Shard after shard, shuffled within windows: an order for stores that are read in sequence.

    Each epoch lays the samples end to end in a random order of the shards, cuts that line into
    `lanes` equal pieces, and shuffles each piece within windows. The rows of a global batch are
    dealt to the lanes in equal runs, so that a host, which holds a run of rows, reads only its
    lanes' shards; the order itself knows no hosts.

    Args:
        counts: int[s], samples of each shard; some may be 0.
        window: samples that are shuffled with each other.
        seed: int.
        lanes: pieces of an epoch; more than one must divide batch_size.
        batch_size: rows of a global batch.
        opened: called when a window is begun, with a list of its shards and of the next one's.

    Returns:
        grain.MapDataset as of `order`; every sample is in every epoch once.

    Raises:
        ValueError: the lanes do not divide the batch size, or the window is empty.
    """
    return _Windowed(np.asarray(counts, np.int64), window, seed, lanes, batch_size, opened)


class _Windowed(grain.MapDataset):
    def __init__(self, counts, window, seed, lanes, batch_size, opened):
        super().__init__()
        if window < 1:
            raise ValueError(f"window={window} must be at least 1 sample.")
        if lanes < 1 or batch_size % lanes:
            raise ValueError(f"lanes={lanes} must divide batch_size={batch_size}.")
        self._counts, self._first = counts, np.concatenate([[0], np.cumsum(counts)])
        self._window, self._seed, self._lanes = window, seed, lanes
        self._rows = batch_size // lanes  # of a batch, in a lane
        self._batch_size, self._opened = batch_size, opened
        self._kept, self._lock = {}, threading.Lock()

    def __len__(self):
        return _ENDLESS

    def __getstate__(self):
        return vars(self) | {"_kept": {}, "_lock": None}

    def __setstate__(self, state):
        vars(self).update(state)
        self._lock = threading.Lock()

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        position, size = int(index), int(self._first[-1])
        epoch = position // size
        lane = position % self._batch_size // self._rows
        starts = self._starts(epoch)
        place = self._before(position, lane) - self._before(epoch * size, lane)
        number, offset = divmod(place, self._window)
        mixed = self._mixed(epoch, lane, number)
        return int(self._sample(epoch, starts[lane] + number * self._window + mixed[offset]))

    def _before(self, position, lane):
        """How many positions below this one are in the lane."""
        batches, row = divmod(position, self._batch_size)
        return batches * self._rows + min(max(row - lane * self._rows, 0), self._rows)

    def _starts(self, epoch):
        """Where on the line of an epoch each lane's piece begins, and the line's end."""
        size = int(self._first[-1])

        def make():
            ends = [(epoch + 1) * size, epoch * size]
            lengths = [
                self._before(ends[0], lane) - self._before(ends[1], lane)
                for lane in range(self._lanes)
            ]
            return np.concatenate([[0], np.cumsum(lengths)])

        return self._memo(("starts", epoch), make)

    def _shards(self, epoch):
        """The epoch's order of shards, and where on its line each begins."""

        def make():
            shards = np.random.default_rng((self._seed, epoch)).permutation(len(self._counts))
            return shards, np.concatenate([[0], np.cumsum(self._counts[shards])])

        return self._memo(("shards", epoch), make)

    def _mixed(self, epoch, lane, number):
        """The order within a window."""

        def make():
            begin, end = self._span(epoch, lane, number)
            if self._opened is not None:
                self._opened(self._next_shards(epoch, lane, number))
            key = (self._seed, epoch, lane, number)
            return np.random.default_rng(key).permutation(end - begin)

        return self._memo((epoch, lane, number), make)

    def _span(self, epoch, lane, number):
        """Where on the line of an epoch a window begins and ends; empty behind the last one."""
        starts = self._starts(epoch)
        begin = starts[lane] + number * self._window
        return begin, max(begin, min(begin + self._window, starts[lane + 1]))

    def _next_shards(self, epoch, lane, number):
        """The shards of a window and of the next one, in order."""
        shards = self._shards_between(epoch, *self._span(epoch, lane, number))
        begin, end = self._span(epoch, lane, number + 1)
        after = (epoch, begin, end) if end > begin else (epoch + 1, *self._span(epoch + 1, lane, 0))
        return list(dict.fromkeys([*shards, *self._shards_between(*after)]))

    def _shards_between(self, epoch, begin, end):
        if end <= begin:
            return []
        shards, ends = self._shards(epoch)
        low = np.searchsorted(ends, begin, "right") - 1
        shards = shards[low : np.searchsorted(ends, end, "left")]
        return [int(s) for s in shards if self._counts[s]]

    def _sample(self, epoch, place):
        """The number of the sample at a place of an epoch's line."""
        shards, ends = self._shards(epoch)
        at = np.searchsorted(ends, place, "right") - 1
        return self._first[shards[at]] + place - ends[at]

    def _memo(self, key, make):
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        made = make()
        with self._lock:
            while len(self._kept) >= max(_KEPT, 4 * self._lanes):
                del self._kept[next(iter(self._kept))]
            return self._kept.setdefault(key, made)
