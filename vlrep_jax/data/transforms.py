"""Training augmentation; evaluation preprocessing is in `preprocess.py`.

Pure functions; every random one takes its `numpy.random.Generator`. What TRANSFORMS lists begins
with a `picture.Picture`, so that no more of a file is decoded than the crop needs, or an array.
"""

import numpy as np
from PIL import Image

from vlrep_jax.data.crops import area_box, square_box
from vlrep_jax.data.picture import Picture
from vlrep_jax.data.preprocess import Preprocess, frame_rows, resample
from vlrep_jax.data.rand_augment import rand_augment as _rand_augment

_WHITE = (255, 255, 255)
_AFFINE = {}  # random_affine's defaults


def resized(image, size, box=None):
    """A part of a Picture or of uint8[h, w, 3] as uint8[size, size, 3]; None is all of it."""
    # One resampling for crop and resize.
    if isinstance(image, Picture):
        return image.resampled(size, size, box)
    return resample(image, size, size, box=box)


def random_square_crop(image, size, rng, scale=(0.9, 1.0)):
    """A random square of `scale` times the largest square's area, as uint8[size, size, 3]."""
    return resized(image, size, square_box(*image.shape[:2], rng, scale))


def random_affine(image, rng, *, degrees=10.0, scale=(0.85, 1.1), shift=0.08, fill=_WHITE):
    """Turns, scales and shifts about the centre in one interpolation; the shape stays.

    Args:
        degrees: largest turn to either side.
        scale: range of the factor of size.
        shift: largest shift along each axis, as a share of the side.
        fill: colour of what comes in from outside.
    """
    height, width = image.shape[:2]
    angle = np.deg2rad(rng.uniform(-degrees, degrees))
    factor = rng.uniform(*scale)
    shift_x, shift_y = rng.uniform(-shift, shift, 2) * (width, height)
    # Pillow wants the map from the result's pixel to the source's: the inverse.
    cos, sin = np.cos(angle) / factor, np.sin(angle) / factor
    x, y = width / 2 + shift_x, height / 2 + shift_y
    matrix = (cos, sin, width / 2 - cos * x - sin * y, -sin, cos, height / 2 + sin * x - cos * y)
    turned = Image.fromarray(image).transform(
        (width, height),
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BILINEAR,
        fillcolor=fill,
    )
    return np.asarray(turned)


def color_jitter(image, rng, *, brightness=0.1, contrast=0.1, saturation=0.1):
    """Scales brightness, contrast (about the mean) and saturation by up to 1 +- each share."""
    bright, contrasted, saturated = 1 + rng.uniform(-1, 1, 3) * (brightness, contrast, saturation)
    pixels = image.astype(np.float32) * np.float32(bright)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    pixels = grey[..., None] + np.float32(saturated) * (pixels - grey[..., None])
    mean = grey.mean()
    pixels = mean + np.float32(contrasted) * (pixels - mean)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def flip(image):
    """Mirrors left and right."""
    return np.ascontiguousarray(image[:, ::-1])


def grey(image):
    """Every channel the luma, ITU-R 601-2."""
    return np.array(Image.fromarray(image).convert("L").convert("RGB"))


def _random_crop(image, rng, *, size, scale=(0.9, 1.0)):
    return random_square_crop(image, size, rng, scale)


def _random_resized_crop(image, rng, *, size, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3)):
    return resized(image, size, area_box(*image.shape[:2], rng, scale, ratio))


def _clip(image, rng, *, size, frames, crop=(0.9, 1.0)):
    rows = frame_rows(image.shape[0], frames)
    box = square_box(rows[0][1], image.shape[1], rng, crop)
    pixels = image.pixels() if isinstance(image, Picture) else image
    # Cut first: resampling looks beyond a box, into the next frame.
    return np.stack([resample(pixels[top:end], size, size, box=box) for top, end in rows])


def _squash(image, rng, *, size):
    del rng
    return resized(image, size)


def _center(image, rng, *, size):
    del rng
    return Preprocess(size)(image.pixels() if isinstance(image, Picture) else image)


def _augment(
    image,
    rng,
    *,
    size,
    crop=(0.9, 1.0),
    ratio=None,
    affine=_AFFINE,
    color=None,
    rand_augment=None,
    grey_share=0.0,
    flip_share=0.0,
):
    height, width = image.shape[:2]
    square = ratio is None
    box = (
        square_box(height, width, rng, crop)
        if square
        else area_box(height, width, rng, crop, ratio)
    )
    image = resized(image, size, box)
    if affine is not None:
        image = random_affine(image, rng, **affine)
    if color is not None:
        image = color_jitter(image, rng, **color)
    if rand_augment is not None:
        image = _rand_augment(image, rng, **rand_augment)
    if grey_share and rng.random() < grey_share:
        image = grey(image)
    return flip(image) if rng.random() < flip_share else image


# Training transforms by name: (Picture or uint8[h, w, 3], rng) -> uint8[size, size, 3].
TRANSFORMS = {
    # A square, of FLIP's with scale (0.5, 1.0); size, scale.
    "random_crop": _random_crop,
    # As OpenCLIP trains: a rectangle, then squashed; size, scale, ratio.
    "random_resized_crop": _random_resized_crop,
    "squash": _squash,  # SigLIP's; size
    # A film strip's frames, all cropped to one square: uint8[frames, size, size, 3]; size, frames,
    # crop.
    "clip": _clip,
    "center": _center,  # none: the evaluation crop; size
    # Small data: size, crop, ratio=(low, high) of a rectangle, affine={...} or None, color={...},
    # rand_augment={...}, grey_share, flip_share.
    "augment": _augment,
}
