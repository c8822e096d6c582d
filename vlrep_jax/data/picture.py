"""Untrusted picture files in training: checked at once, decoded once it is known for what.

`decoding.py` decodes a file to its exact pixels. Here a transform asks for a part of a picture at
a size, so that a JPEG is decoded no larger than that needs, and by OpenCV where it is installed.
"""

import importlib.util

import numpy as np
from PIL import Image
from PIL import __version__ as PILLOW_VERSION

from vlrep_jax.data.decoding import MAX_PIXELS, loaded, read_header, to_rgb, upright
from vlrep_jax.data.jpeg_header import ordinary_size
from vlrep_jax.data.preprocess import resample

DECODERS = ("auto", "opencv", "pillow")
REDUCTIONS = (8, 4, 2)  # of both sides, which JPEG decoders do for less than the whole
_ORIENTATION = 0x0112
_END = b"\xff\xd9"  # of a JPEG
_MISSING = 128  # what libjpeg fills rows with that a broken file has not
# What turns a picture of each EXIF orientation upright: transposed first, then the steps through
# its rows and columns, -1 where they are mirrored.
_TURNS = {
    1: (False, 1, 1),
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}


def find_decoder(name="auto"):
    """The decoder that a recipe means.

    Args:
        name: one of DECODERS; `auto` is OpenCV where it is installed, else Pillow.

    Returns:
        `opencv` or `pillow`.

    Raises:
        ValueError: an unknown name, or OpenCV is asked for and not installed.
    """
    if name not in DECODERS:
        raise ValueError(f"decoder={name!r} is unknown; it is one of {', '.join(DECODERS)}.")
    installed = importlib.util.find_spec("cv2") is not None
    if name == "opencv" and not installed:
        raise ValueError(
            "decoder='opencv' needs the package opencv-python-headless: pip install "
            "'vlrep_jax[data]', or set it to 'pillow'."
        )
    return "opencv" if installed and name != "pillow" else "pillow"


def decoder_name(decoder):
    """A decoder with its version, for the log."""
    return f"OpenCV {_opencv().__version__}" if decoder == "opencv" else f"Pillow {PILLOW_VERSION}"


class Picture:
    """One encoded picture; errors of its content are raised where it is decoded.

    Attributes:
        shape: (h, w, 3) of the picture turned upright.

    Args:
        data: bytes of a file in one of `decoding.FORMATS`.
        decoder: `opencv` or `pillow`. OpenCV does what it does as Pillow does, to within
            rounding: JPEG of 8 bits in colour or grey. Pillow decodes all else, and what OpenCV
            gives up on.
        max_pixels: as of `decoding.decode`.

    Raises:
        BadImage: as `decoding.decode`, for what a header tells, or for any reason where the
            picture is no JPEG.
    """

    def __init__(self, data, decoder="pillow", max_pixels=MAX_PIXELS):
        self._decoder, self._max_pixels = decoder, max_pixels
        self._data, self._whole, self._header = data, None, None
        size = ordinary_size(data) if decoder == "opencv" else None
        if size and min(size) > 1 and size[0] * size[1] <= max_pixels:
            self._turn, self.shape = _TURNS[1], (*size, 3)
            return
        self._header = header = read_header(data, max_pixels)
        if header.format == "JPEG" and header.mode in ("RGB", "L"):
            self._turn = _turn(header)
            self.shape = (*(header.size if self._turn[0] else header.size[::-1]), 3)
        else:
            self._keep(loaded(header, lambda image: to_rgb(upright(image))))

    def pixels(self):
        """The picture at its own size, uint8[h, w, 3]; kept for the next call."""
        if self._whole is None:
            pixels = self._by_opencv(1) if self._decoder == "opencv" else None
            self._keep(self._by_pillow(1, to_rgb) if pixels is None else pixels)
        return self._whole

    def resampled(self, height, width, box=None):
        """A part of the picture at a given size, antialiased.

        OpenCV averages areas where both sides shrink and takes whole pixels of the picture for the
        box; otherwise it is Pillow's bicubic kernel and the exact box.

        Args:
            box: (left, top, right, bottom) in pixels; None is all.

        Returns:
            uint8[height, width, 3].

        Raises:
            BadImage: as `decoding.decode`.
        """
        full_height, full_width, _ = self.shape
        box = (0, 0, full_width, full_height) if box is None else box
        pixels = self._whole
        if pixels is None:
            reduced = reduction(box, height, width)
            box = self._reduced_box(box, reduced)
            pixels = self._by_opencv(reduced) if self._decoder == "opencv" else None
            if pixels is None:
                # Without a detour by arrays: a copy of a photograph costs a tenth of its decoding.
                return self._by_pillow(reduced, lambda image: _cut(image, (width, height), box))
        left, top, right, bottom = box
        if self._decoder == "opencv":
            part = pixels[round(top) : round(bottom), round(left) : round(right)]
            if part.shape[0] >= height and part.shape[1] >= width:
                cv2 = _opencv()
                return cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
        return resample(pixels, height, width, box=box)

    def _reduced_box(self, box, reduced):
        """The box in the picture at 1 / `reduced`, whose last row and column may be cut ones."""
        if reduced == 1:
            return box
        _, down, across = self._turn
        # Mirrored, the cut one comes first.
        x = -self.shape[1] % reduced if across < 0 else 0
        y = -self.shape[0] % reduced if down < 0 else 0
        return [(edge + shift) / reduced for edge, shift in zip(box, (x, y, x, y), strict=True)]

    def _keep(self, pixels):
        self._whole, self.shape = pixels, pixels.shape
        self._data = self._header = None

    def _by_pillow(self, reduced, convert):
        header = self._header or read_header(self._data, self._max_pixels)
        self._header = None  # once loaded it has one size
        if reduced > 1:
            header.draft(None, [side // reduced for side in header.size])
        turned = self._turn is not _TURNS[1]
        return loaded(header, lambda image: convert(upright(image) if turned else image))

    def _by_opencv(self, reduced):
        """Upright pixels; None where OpenCV cannot, or disagrees with the header."""
        if _END not in self._data[-64:]:
            return None  # OpenCV returns what it has of a broken file, which Pillow refuses
        cv2 = _opencv()
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        if reduced > 1:
            # The flag of grey is that of the size alone; that of colour would ask for BGR as well.
            flags |= getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{reduced}")
        try:
            pixels = cv2.imdecode(np.frombuffer(self._data, np.uint8), flags)
        except cv2.error:
            return None
        transposed, down, across = self._turn
        height, width = self.shape[1::-1] if transposed else self.shape[:2]
        if pixels is None or pixels.shape != (-(-height // reduced), -(-width // reduced), 3):
            return None
        if pixels[-1, -1, 0] == _MISSING and (pixels[-1] == _MISSING).all():
            return None
        if self._turn is _TURNS[1]:
            return pixels
        pixels = pixels.transpose(1, 0, 2) if transposed else pixels
        return np.ascontiguousarray(pixels[::down, ::across])


def reduction(box, height, width):
    """By how much a picture may shrink in decoding and still fill height x width from the box."""
    left, top, right, bottom = box
    for factor in REDUCTIONS:
        if right - left >= factor * width and bottom - top >= factor * height:
            return factor
    return 1


def _cut(image, size, box):
    """A box of an upright PIL image in colour or grey, at a size, as uint8[h, w, 3]."""
    part = image.resize(size, Image.Resampling.BICUBIC, box)
    return np.asarray(part if part.mode == "RGB" else part.convert("RGB"))


def _turn(header):
    try:
        return _TURNS.get(header.getexif().get(_ORIENTATION), _TURNS[1])
    except Exception:  # a broken EXIF block says nothing about the pixels
        return _TURNS[1]


def _opencv():
    import cv2

    cv2.setNumThreads(1)  # batches are made by as many threads or processes as the recipe says
    return cv2
