"""One prepared `emoji_captions` directory for all tests of a run, and a source held in memory."""

import fcntl
import functools
import hashlib
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from vlrep_jax.data import emoji_captions
from vlrep_jax.data.sources import Sample


@functools.cache
def emoji_dir():
    """A data directory that holds emoji_captions; removed when the test run ends."""
    path = Path(os.environ["VLREP_TESTS_SHARED"])  # conftest.py makes it
    # Preparing takes ten seconds: one process does it, and the others wait.
    with open(path / "emoji.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        emoji_captions.prepare(path, progress=lambda line: None)
    return path


def encoded(image, name="PNG", **options):
    """uint8 array or Pillow image -> bytes of a file."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def flat(value, side=8):
    """PNG bytes of a square of one grey."""
    return encoded(np.full((side, side, 3), value, np.uint8))


def noise(height, width, channels=3, seed=0):
    """A picture with structure of a few pixels' size, uint8[height, width, channels]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, channels), np.uint8)
    image = Image.fromarray(small.squeeze())
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


class ListSource:
    """A source of samples in a list."""

    def __init__(self, samples):
        self._samples = list(samples)

    def __len__(self):
        return len(self._samples)

    def __getitem__(self, index):
        return self._samples[index]

    def __getitems__(self, indices):
        return [self._samples[index] for index in indices]

    def fingerprint(self):
        return hashlib.sha256(repr(self._samples).encode()).hexdigest()


def grey_source(count, **changed):
    """Sample i is a square of grey i, called `number i`; `changed` maps `i<n>` to other fields."""
    samples = [Sample(flat(i), (f"number {i}",), str(i), {}) for i in range(count)]
    for name, fields in changed.items():
        number = int(name[1:])
        samples[number] = samples[number]._replace(**fields)
    return ListSource(samples)
