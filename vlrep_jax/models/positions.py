"""Position embeddings of one size as those of another: what training in stages changes between."""

import math

import jax
import jax.numpy as jnp


def resize_image_positions(trained, count: int):
    """Positions of a square grid of patches as those of a finer or coarser one, by bicubic
    interpolation (Keys' kernel, a = -0.5, with antialiasing where the grid becomes coarser).

    Args:
      trained: float32[n, w], rows of the grid one after the other; n is g * g, or g * g + 1 where
        the first row is a class token's, which stays as it is.
      count: rows of the result, of the same kind.

    Returns:
      float32[count, w].

    Raises:
      ValueError: `trained` and `count` are not both grids, or not both with a class token.
    """
    (old, old_class), (new, new_class) = _grid(len(trained)), _grid(count)
    if None in (old, new) or old_class != new_class:
        raise ValueError(
            f"{len(trained)} image positions cannot become {count}: both must be a square number, "
            "or both one more (a class token)."
        )
    width = trained.shape[1]
    grid = jnp.asarray(trained)[old_class:].reshape(old, old, width)
    grid = jax.image.resize(grid, (new, new, width), "cubic").reshape(new * new, width)
    return jnp.concatenate([trained[:old_class], grid])


def fit_text_positions(trained, fresh, *, last_is_read: bool = False):
    """Positions of texts as those of shorter or longer ones: cut, or continued by new rows.

    A text has no size that it could be scaled to, as a picture has: its third token is the third at
    any length. So every trained row keeps its place, and only places that were never trained begin
    anew.

    Args:
      trained: float32[n, w].
      fresh: float32[m, w], initial values of the m rows wanted.
      last_is_read: the text's embedding is read at the last position (`pool='last'` or 'cls'), so
        that the last row stays the last.

    Returns:
      float32[m, w].
    """
    end = int(last_is_read)
    rows, last = trained[: len(trained) - end], trained[len(trained) - end :]
    kept = min(len(rows), len(fresh) - end)
    return jnp.concatenate([rows[:kept], fresh[kept : len(fresh) - end], last])


def _grid(rows):
    """(side of the grid, rows before it), the side None where `rows` is no grid."""
    for before in (0, 1):
        side = math.isqrt(rows - before)
        if side and side * side == rows - before:
            return side, before
    return None, 0
