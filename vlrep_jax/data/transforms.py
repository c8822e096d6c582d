"""Training augmentation; evaluation preprocessing is in `preprocess.py`.

Pure functions of NumPy arrays; every random one takes its `numpy.random.Generator`.
"""

import numpy as np
from PIL import Image

from vlrep_jax.data.preprocess import Preprocess, resample

_WHITE = (255, 255, 255)


def random_resized_crop(image, size, rng, scale=(0.9, 1.0)):
    """A random square of `scale` times the largest square's area, as uint8[size, size, 3]."""
    height, width = image.shape[:2]
    side = min(height, width) * np.sqrt(rng.uniform(*scale))
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    # One resampling for crop and resize.
    return resample(image, size, size, box=(left, top, left + side, top + side))


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


def _random_crop(image, rng, *, size, scale=(0.9, 1.0)):
    return random_resized_crop(image, size, rng, scale)


def _squash(image, rng, *, size):
    del rng
    return Preprocess(size, "squash")(image)


def _center(image, rng, *, size):
    del rng
    return Preprocess(size)(image)


def _augment(image, rng, *, size, crop=(0.9, 1.0), affine=None, color=None, flip_share=0.0):
    image = random_resized_crop(image, size, rng, crop)
    image = random_affine(image, rng, **(affine or {}))
    if color is not None:
        image = color_jitter(image, rng, **color)
    return flip(image) if rng.random() < flip_share else image


# Training transforms by name: (image uint8[h, w, 3], rng) -> uint8[size, size, 3].
TRANSFORMS = {
    "random_crop": _random_crop,  # CLIP's only augmentation; size, scale
    "squash": _squash,  # SigLIP's; size
    "center": _center,  # none: the evaluation crop; size
    "augment": _augment,  # small data; size, crop, affine={...}, color={...}, flip_share
}
