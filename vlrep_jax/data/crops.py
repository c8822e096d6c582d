"""Which part of a picture a training crop takes: boxes (left, top, right, bottom) in pixels."""

import math

_TRIES = 10


def square_box(height, width, rng, scale=(0.9, 1.0)):
    """A random square of `scale` times the largest square's area; its edges are fractions."""
    side = min(height, width) * math.sqrt(rng.uniform(*scale))
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    return left, top, left + side, top + side


def area_box(height, width, rng, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3)):
    """A random rectangle of `scale` times the picture's area, as torchvision's RandomResizedCrop.

    Where none of ten drawn rectangles fits, it is the largest central one within `ratio`.

    Args:
        ratio: range of width / height, drawn evenly in its logarithm.
    """
    low, high = map(math.log, ratio)
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(low, high))
        box_width, box_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return left, top, left + box_width, top + box_height
    shape = min(max(width / height, ratio[0]), ratio[1])
    box_width = min(width, max(round(height * shape), 1))
    box_height = min(height, max(round(width / shape), 1))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height
