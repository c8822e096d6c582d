"""RandAugment (arXiv:1909.13719): a few of fourteen operations in a row, all of one strength.

The operations are Pillow's, as in the paper's and torchvision's code, so it needs nothing more.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

STRONGEST = 30  # magnitudes are out of this many


def rand_augment(image, rng, *, operations=2, magnitude=9, names=None, fill=(128, 128, 128)):
    """Applies operations drawn with replacement, each as likely.

    Args:
        image: uint8[h, w, 3].
        rng: numpy.random.Generator.
        operations: how many.
        magnitude: strength of each, 0 to STRONGEST; what can go both ways goes either with 1/2.
        names: of OPERATIONS, those to draw from; None for all. Colours are words of captions:
            leave out what changes them where captions name them.
        fill: colour of what comes in from outside.

    Returns:
        uint8[h, w, 3].

    Raises:
        ValueError: an unknown operation, or a magnitude out of range.
    """
    names = tuple(OPERATIONS) if names is None else tuple(names)
    unknown = sorted(set(names) - OPERATIONS.keys())
    if unknown or not names:
        raise ValueError(f"rand_augment has no operations {unknown}; it has {list(OPERATIONS)}.")
    if not 0 <= magnitude <= STRONGEST:
        raise ValueError(f"magnitude={magnitude} must be between 0 and {STRONGEST}.")
    picture = Image.fromarray(image)
    for _ in range(operations):
        name, sign = names[rng.integers(len(names))], 1 if rng.random() < 0.5 else -1
        picture = OPERATIONS[name](picture, magnitude / STRONGEST, sign, tuple(fill))
    return np.asarray(picture)


def _enhanced(kind):
    return lambda picture, share, sign, fill: kind(picture).enhance(1 + sign * 0.9 * share)


def _moved(matrix):
    """An operation by an affine map, of the result's pixels to the picture's."""

    def move(picture, share, sign, fill):
        coefficients = matrix(sign * share, *picture.size)
        kind, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
        return picture.transform(picture.size, kind, coefficients, nearest, fillcolor=fill)

    return move


# (picture, share of the greatest strength, sign, fill) -> picture. Ranges are torchvision's.
OPERATIONS = {
    "identity": lambda picture, share, sign, fill: picture,
    "shear_x": _moved(lambda share, w, h: (1, 0.3 * share, 0, 0, 1, 0)),
    "shear_y": _moved(lambda share, w, h: (1, 0, 0, 0.3 * share, 1, 0)),
    "translate_x": _moved(lambda share, w, h: (1, 0, -int(150 / 331 * w * share), 0, 1, 0)),
    "translate_y": _moved(lambda share, w, h: (1, 0, 0, 0, 1, -int(150 / 331 * h * share))),
    "rotate": lambda picture, share, sign, fill: picture.rotate(sign * 30 * share, fillcolor=fill),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "posterize": lambda picture, share, sign, fill: ImageOps.posterize(
        picture, 8 - round(4 * share)
    ),
    "solarize": lambda picture, share, sign, fill: ImageOps.solarize(picture, 255 * (1 - share)),
    "autocontrast": lambda picture, share, sign, fill: ImageOps.autocontrast(picture),
    "equalize": lambda picture, share, sign, fill: ImageOps.equalize(picture),
}
