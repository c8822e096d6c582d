"""A part of a source: a held-out split by key, what a list of keys leaves, or the first samples."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vlrep_jax.data.sources.sample import key_hashes, shard_of
from vlrep_jax.data.sources.sections import open_section

_LOG = logging.getLogger(__name__)
_PARTS = ("train", "held_out")
_CHUNK = 1024


class Subset:
    """Some samples of a source, chosen by their keys, so that new samples never move old ones.

    Args:
        source: section of SOURCES, or a source.
        share: of all keys, the share that is held out, by a hash of the key.
        part: "train", what is not held out, or "held_out".
        salt: another text gives another split.
        exclude: file of keys that are left out, one a line, UTF-8; '' for none.
        first: of what is left, only so many samples; 0 for all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a value out of its range, or nothing is left.
    """

    def __init__(
        self,
        source: Mapping,
        *,
        share: float = 0.0,
        part: str = "train",
        salt: str = "",
        exclude: str = "",
        first: int = 0,
    ):
        if hasattr(source, "items") and "name" not in source:
            raise ValueError("source must be a section of SOURCES, such as {'name': 'tar', ...}.")
        if not 0 <= share < 1:
            raise ValueError(f"share={share} must be in [0, 1): the share that is held out.")
        if part not in _PARTS:
            raise ValueError(f"part={part!r} must be one of {_PARTS}.")
        if first < 0:
            raise ValueError(f"first={first} must be at least 0; 0 takes all.")
        self._source = open_section(source) if hasattr(source, "items") else source
        if hasattr(self._source, "order"):
            raise ValueError(
                f"{type(self._source).__name__} has an order of its own, which a subset would "
                "break; make a subset of what it is made of instead."
            )
        kept = np.ones(len(self._source), bool)
        excluded = _read_keys(exclude) if exclude else np.zeros(0, np.uint64)
        if share or part == "held_out" or exclude:
            hashes = _hashes(self._source)
            kept = held_out(hashes, share, salt) == (part == "held_out")
            kept &= ~np.isin(hashes, excluded)
            _LOG.info(
                "subset: %s of %s keys in %s are in the source",
                *(np.isin(excluded, hashes).sum(), len(excluded), exclude or "no list"),
            )
        # Four bytes a sample: the number of each that is kept.
        numbers = np.flatnonzero(kept)
        numbers = numbers[: first or None]
        self._numbers = numbers.astype(np.uint32 if len(kept) < 2**32 else np.uint64)
        if not len(self._numbers):
            raise ValueError(
                f"Nothing is left of {len(kept)} samples by share={share}, part={part!r} and "
                f"{len(excluded)} excluded keys."
            )
        self._options = [share, part, salt, sorted(map(int, excluded)), first]

    @property
    def skipped(self):
        """What the source itself left out, by reason."""
        return getattr(self._source, "skipped", {})

    def __len__(self):
        return len(self._numbers)

    def __getitem__(self, index):
        return self._source[int(self._numbers[index])]

    def __getitems__(self, indices):
        return self._source.__getitems__([int(self._numbers[int(index)]) for index in indices])

    def shard_of(self, index):
        """As the source says."""
        number = int(self._numbers[index])
        return shard_of(self._source, number, self._source[number])

    def key_hashes(self):
        """uint64[n], as `sample.key_hashes`."""
        return _hashes(self._source)[self._numbers]

    def blocks(self):
        """As of `Files`: what is left of each block of the source."""
        blocks = self._source.blocks() if hasattr(self._source, "blocks") else np.zeros(0, np.int64)
        ends = np.searchsorted(self._numbers, np.cumsum(blocks))
        return np.diff(ends, prepend=0) if len(blocks) else blocks

    def windows(self, blocks, seed, batch_size=1):
        """As of the source."""
        return self._source.windows(blocks, seed, batch_size)

    def fingerprint(self):
        """Stable hash of the source and of what is chosen of it."""
        held = json.dumps([self._source.fingerprint(), len(self), self._options])
        return hashlib.sha256(held.encode()).hexdigest()


def held_out(hashes, share: float, salt: str = ""):
    """Whether keys are held out.

    Args:
        hashes: uint64[n], as `sample.key_hashes`.
        share: of all keys. Those held out at one share are held out at every larger one.
        salt: of the split.

    Returns:
        bool[n].
    """
    mixed = hashes ^ key_hashes([salt])[0]
    # The last step of splitmix64: every bit of the sum decides every bit of the result.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed < np.uint64(int(share * 2**64))


def _hashes(source):
    own = getattr(source, "key_hashes", None)
    if own is not None:
        return own()
    size = len(source)
    _LOG.info("subset: reading the keys of %s samples, for their source keeps none", f"{size:,}")
    chunks = (range(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))
    hashes = [key_hashes(s.key for s in source.__getitems__(chunk)) for chunk in chunks]
    return np.concatenate([np.zeros(0, np.uint64), *hashes])


def _read_keys(path):
    text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    return np.unique(key_hashes(line.rstrip("\r") for line in text.split("\n") if line.strip()))
