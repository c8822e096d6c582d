"""From a picture that was found to the pixels that its model takes, and a thumbnail."""

import hashlib
import io
from collections.abc import Container
from typing import NamedTuple

import numpy as np
from PIL import Image

from vlrep_jax.data.decoding import MAX_PIXELS, BadImage, decode, open_picture, to_rgb, upright
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.search.listing import Found, read

THUMBNAIL = 320  # pixels of its longer side, at most
_QUALITY = 88


class Loaded(NamedTuple):
    """A picture that was read.

    Attributes:
      found: as it was then.
      digest: hash of its bytes.
      pixels: uint8[size, size, 3] for the model; None, as what follows, where the digest is known.
      width, height: of the whole picture, turned upright.
      thumbnail: JPEG.
    """

    found: Found
    digest: bytes
    pixels: np.ndarray | None = None
    width: int = 0
    height: int = 0
    thumbnail: bytes | None = None


def load(found: Found, preprocess: Preprocess, known: Container[bytes]) -> Loaded:
    """Reads a picture, and decodes it unless its digest is known.

    Raises:
      FileNotFoundError: its file is gone.
      BadImage: it cannot be read or decoded.
    """
    data, found = read(found)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    if digest in known:
        return Loaded(found, digest)
    pixels, whole = decoded(data, preprocess)
    return Loaded(found, digest, pixels, *whole.size, thumbnail(whole))


def decoded(
    data: bytes, preprocess: Preprocess, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, Image.Image]:
    """What `preprocess(data)` gives, and the whole picture in RGB, upright; decoded once.

    Raises:
      BadImage: it cannot be decoded.
    """
    if preprocess.rgb == "white":
        pixels = decode(data, max_pixels)
        return preprocess(pixels), Image.fromarray(pixels)
    # As the model's authors treat alpha, palettes and orientation; people see it on white.
    picture = open_picture(data, max_pixels)
    try:
        return preprocess(picture), Image.fromarray(to_rgb(upright(picture)))
    except (OSError, SyntaxError) as error:
        raise BadImage("corrupt", str(error)) from error


def thumbnail(picture: Image.Image) -> bytes:
    """JPEG of a picture in RGB, of at most THUMBNAIL pixels a side."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    # Flat colours beside each other, as in drawings, blur at the usual 4:2:0.
    small.save(buffer, "JPEG", quality=_QUALITY, subsampling="4:4:4", optimize=True)
    return buffer.getvalue()
