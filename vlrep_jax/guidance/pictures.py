"""What the commands write: pictures, contact sheets, animations; and what they read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vlrep_jax.data.decoding import BadImage, decode
from vlrep_jax.report.sheet import font

_GAP, _LINE, _LETTERS = 4, 15, 11
_SHOWN = 144  # least pixels of a side in sheets and animations: small pictures are enlarged


def levels(images) -> np.ndarray:
    """float[..., 3] in [0, 1] -> uint8[..., 3]."""
    return np.uint8(np.rint(np.asarray(images, np.float64) * 255))


def grid(images: Sequence[np.ndarray], columns: int = 0, shown: int = _SHOWN) -> Image.Image:
    """uint8[h, w, 3] of one size side by side on white, enlarged in whole steps where small.

    Args:
      columns: pictures a row; 0 is about a square.
      shown: least pixels of their longer side.
    """
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    height, width, _ = images[0].shape
    zoom = max(round(shown / max(height, width)), 1)
    cell = (width * zoom + _GAP, height * zoom + _GAP)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), "white")
    for i, pixels in enumerate(images):
        picture = Image.fromarray(pixels).resize(
            (width * zoom, height * zoom), Image.Resampling.NEAREST
        )
        at = (_GAP + i % columns * cell[0], _GAP + i // columns * cell[1])
        sheet.paste(picture, at)
    return sheet


def labelled(images: Sequence[np.ndarray], labels: Sequence[str], columns: int) -> Image.Image:
    """`grid` with a line of text below each picture, cut to its width."""
    height, width, _ = images[0].shape
    zoom = max(round(_SHOWN / max(height, width)), 1)
    cells = []
    for pixels, label in zip(images, labels, strict=True):
        cell = Image.new("RGB", (width * zoom, height * zoom + _LINE), "white")
        size = (width * zoom, height * zoom)
        cell.paste(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST))
        ImageDraw.Draw(cell).text((0, height * zoom), label, fill="black", font=font(_LETTERS))
        cells.append(np.asarray(cell))
    return grid(cells, columns, shown=0)


def save_animation(path: Path, frames: Sequence[Image.Image], *, last_s: float = 2.0) -> None:
    """An animated PNG, ten frames a second, that rests on its last one and begins again."""
    times_ms = [100] * (len(frames) - 1) + [round(1000 * last_s)]
    frames[0].save(path, "PNG", save_all=True, append_images=frames[1:], duration=times_ms, loop=0)


def read_picture(path: str, flag: str) -> np.ndarray:
    """A picture file as uint8[h, w, 3], see `decoding.decode`.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it cannot be read; the message has the flag that named it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{flag}={path}: there is no such file.")
    try:
        return decode(Path(path).read_bytes())
    except BadImage as error:
        raise ValueError(f"{flag}={path}: {error.why}.") from None


def read_mask(path: str, height: int, width: int) -> np.ndarray:
    """A picture of a mask as float32[height, width] in [0, 1]: 1 (white) may change.

    Raises:
      FileNotFoundError, ValueError: as `read_picture`; or it is of another size, or black.
    """
    mask = read_picture(path, "--mask").mean(-1, dtype=np.float32) / np.float32(255)
    if mask.shape != (height, width):
        raise ValueError(
            f"--mask={path} has {mask.shape[1]}x{mask.shape[0]} pixels and the picture "
            f"{width}x{height}; they must be of one size."
        )
    if not mask.any():
        raise ValueError(f"--mask={path} is black: nothing may change. White is what may.")
    return mask
