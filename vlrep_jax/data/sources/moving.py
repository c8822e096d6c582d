"""Clips composed of another source's pictures, each moving in one of six ways."""

import hashlib
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from vlrep_jax.data.decoding import BadImage, decode
from vlrep_jax.data.sources.sample import Sample
from vlrep_jax.data.sources.sections import open_section

MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "shrinking")
# Shares of the frame's side: a picture that moves, its way from the middle, and one that grows.
_SIDE, _WAY, _SIDES = 0.45, 0.27, (0.25, 0.9)


class Moving:
    """Every picture of a source in every one of MOTIONS; sample 6 i + j is picture i in motion j.

    A clip is a film strip, its frames below each other in one PNG, as `ffmpeg -vf tile=1x8` makes
    them of a video: `Preprocess` and the transform `clip` part them. Here alone a source decodes
    pictures: a strip is made when it is read. Forth and back are the same frames in reversed
    order, so a mean over the frames tells neither left from right nor growing from shrinking.

    The one caption is the picture's first with the motion behind it. Labels: the picture's, and
    `motion`.

    Args:
        source: section of SOURCES, or a source.
        frames: of a clip.
        side: pixels of a frame's side.

    Raises:
        ValueError: fewer than two frames, or a side of less than 16 pixels.
    """

    def __init__(self, source: Mapping, *, frames: int = 8, side: int = 48):
        if frames < 2 or side < 16:
            raise ValueError(f"frames={frames} must be at least 2, and side={side} 16 pixels.")
        self._source = open_section(source) if hasattr(source, "items") else source
        self._frames, self._side = frames, side

    def __len__(self):
        return len(self._source) * len(MOTIONS)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        indices = [int(index) for index in indices]
        if any(not 0 <= index < len(self) for index in indices):
            raise IndexError(f"Sample {max(indices)} of {len(self)} was asked for.")
        numbers = sorted({index // len(MOTIONS) for index in indices})
        held = dict(zip(numbers, self._source.__getitems__(numbers), strict=True))
        return [self._clip(held[i // len(MOTIONS)], MOTIONS[i % len(MOTIONS)]) for i in indices]

    def _clip(self, sample, motion):
        captions = tuple(f"{text} {motion}" for text in sample.captions[:1])
        key, labels = f"{sample.key}/{motion}", {**sample.labels, "motion": motion}
        identity = f"{sample.identity}/{motion}" if sample.identity else ""
        moved = Sample(b"", captions, key, labels, identity, sample.problem)
        if sample.problem:
            return moved
        try:
            pixels = decode(sample.image)
        except BadImage as error:
            return moved._replace(problem=error.reason)
        return moved._replace(image=_png(strip(pixels, motion, self._frames, self._side)))

    def fingerprint(self):
        """Stable hash of the source and of how clips are made of it."""
        held = f"{self._source.fingerprint()} {self._frames} {self._side} {MOTIONS}"
        return hashlib.sha256(held.encode()).hexdigest()


def strip(pixels, motion, frames, side):
    """A picture on white in one of MOTIONS: uint8[h, w, 3] -> uint8[frames * side, side, 3]."""
    picture, middle = Image.fromarray(pixels), side / 2
    made = Image.new("RGB", (side, frames * side), "white")
    for number, at in enumerate(np.linspace(-1, 1, frames)):
        at = float(-at if motion in ("moving left", "moving up", "shrinking") else at)
        x = y = middle
        length = _SIDE * side
        if motion in ("moving left", "moving right"):
            x += at * _WAY * side
        elif motion in ("moving up", "moving down"):
            y += at * _WAY * side
        else:
            low, high = _SIDES
            length = side * (low + (high - low) * (at + 1) / 2)
        length = max(round(length), 1)
        place = (round(x - length / 2), number * side + round(y - length / 2))
        made.paste(
            picture.resize((length, length), Image.Resampling.BICUBIC, reducing_gap=2), place
        )
    return np.asarray(made)


def _png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()
