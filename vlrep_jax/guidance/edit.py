"""`edit`: a picture changed as a text changes from one to another, and no more than that."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from vlrep_jax.data.preprocess import resample
from vlrep_jax.guidance.generators import laplacian, pyramid
from vlrep_jax.guidance.loop import Guided, decoded, guide
from vlrep_jax.guidance.pictures import levels
from vlrep_jax.guidance.targets import Guide, Views

EDIT_VIEWS = Views(zoom=(0.9, 1.3), shift=0.1, shear=0.1, cut=0.0)
_DETAIL = 2  # a picture is worked on at so many times the size that the models see


class Edited(NamedTuple):
    """image: uint8[h, w, 3]. guided: of the descent, on the picture at the size worked on."""

    image: np.ndarray
    guided: Guided


def edit(
    guides: Guide,
    original: np.ndarray,
    source: str,
    target: str,
    *,
    key: jax.Array,
    strength: float = 1.0,
    closeness: float = 2.0,
    mask: np.ndarray | None = None,
    steps: int = 150,
    on_step: Callable | None = None,
) -> Edited:
    """Changes a picture along the direction between two texts.

    >>> guides = Guide([weights.load("runs/quickstart")], EDIT_VIEWS)
    >>> edited = edit(guides, pixels, "a red heart", "a blue heart", key=jax.random.key(0))

    The change is a Laplacian pyramid's that is added to the picture, at no finer scale than the
    models see; it begins at nothing.

    Args:
      guides: with views that fit, such as EDIT_VIEWS.
      original: uint8[h, w, 3].
      source, target: what the picture shows, and what it is to show.
      strength, closeness: see `Guide.along`. strength=0 gives the original, bit for bit.
      mask: float32[h, w] in [0, 1], how much of the change each pixel takes; where it is 0 the
        picture stays bit for bit what it is. None is 1 everywhere.
      key, steps, on_step: see `guide`.

    Raises:
      ValueError: see `Guide.along` and `guide`; or the mask is of another shape.
    """
    height, width, _ = original.shape
    mask = np.ones((height, width), np.float32) if mask is None else np.asarray(mask, np.float32)
    if mask.shape != (height, width):
        raise ValueError(f"The mask has shape {mask.shape}, the picture {(height, width)}.")
    share = min(_DETAIL * max(m.preprocess.size for m in guides.models) / max(height, width), 1)
    small = tuple(max(round(share * side), 1) for side in (height, width))
    sizes = pyramid(*small)

    def around(pixels, mask):
        background = np.asarray(pixels, np.float32) / np.float32(255)
        return laplacian(*mask.shape, background=background, mask=mask, sizes=sizes, noise=0.0)

    working = around(original, mask)
    if small != (height, width):
        shrunk = resample(np.repeat(levels(mask)[..., None], 3, axis=-1), *small)[..., 0]
        working = around(resample(original, *small), np.float32(shrunk) / np.float32(255))
    guided = guide(
        working,
        working.init(key, [target]),
        guides.along(
            working.arrays["background"],
            source,
            target,
            strength=strength,
            closeness=closeness,
        ),
        key=key,
        steps=steps,
        on_step=on_step,
    )
    return Edited(levels(decoded(around(original, mask), guided.latent)[0]), guided)
