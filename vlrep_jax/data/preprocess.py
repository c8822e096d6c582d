"""From a picture to the square of pixels that a model is evaluated on, as its authors made it.

`preprocess_files.py` reads and writes other projects' descriptions of it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vlrep_jax.data.decoding import MAX_PIXELS, BadImage, decode, on_white, open_picture, to_rgb

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MODES = ("crop", "squash", "pad")
CENTERS = ("round", "floor")
RGB = ("white", "first", "last")
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """Evaluation preprocessing: a picture in, uint8[size, size, 3] out.

    The result is that of the originals, byte by byte: OpenAI's and OpenCLIP's transforms
    (torchvision on Pillow), Hugging Face's `CLIPImageProcessorPil` and `SiglipImageProcessorPil`.
    Pictures that are not RGB they treat each in its own way, see `rgb`.

    Attributes:
        size: pixels of a side of the result.
        mode: `crop`, the short side to `short_side`, then the centre (CLIP); `squash`, both sides
            to `size` (SigLIP); `pad`, the long side to `size`, then `fill` around it (OpenCLIP's
            'longest').
        mean, std: of each channel, as shares of 255; see `normalize`.
        interpolation: one of INTERPOLATIONS; all but `nearest` are antialiased.
        short_side: of `crop`; 0 is `size`.
        center: of `crop`, where an odd number of pixels is cut off: `round` puts the half pixel
            where Python's round does (OpenAI, OpenCLIP), `floor` up and left (Hugging Face).
        fill: of `pad`, 0 to 255.
        frames: of a clip, whose frames lie below each other in one picture, a film strip: each is
            made as a picture of its own. 0 for a picture.
        rgb: what is done about files and PIL images that are not RGB. `white`, as training here
            does: files are turned upright as their EXIF block says, transparency is laid on white,
            16 bits are scaled to 8. `first` (Hugging Face) does as much about transparency, but
            neither turns nor scales. `last` (OpenAI, OpenCLIP) converts after it has resized, so
            that palettes are resized by their nearest neighbours, and drops transparency, which
            uncovers what lies beneath.

    Raises:
        ValueError: an unknown or impossible option.
    """

    size: int
    mode: str = "crop"
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    interpolation: str = "bicubic"
    short_side: int = 0
    center: str = "round"
    fill: int = 0
    rgb: str = "white"
    frames: int = 0

    def __post_init__(self):
        known = {"mode": MODES, "interpolation": INTERPOLATIONS, "center": CENTERS}
        known["rgb"] = RGB
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values:
                raise ValueError(f"{name}={value!r} is unknown; it is one of {', '.join(values)}.")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or not np.isfinite(values).all():
                raise ValueError(f"{name}={values} must be three finite numbers, one a channel.")
            object.__setattr__(self, name, values)  # a list would be neither hashed nor compared
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be positive.")
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1.")
        if self.short_side and (self.mode != "crop" or self.short_side < self.size):
            raise ValueError(
                f"short_side={self.short_side} must be at least size={self.size}, in mode 'crop'."
            )
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill={self.fill} must be a level from 0 to 255.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        square = (self.size, self.size, 3)
        return (self.frames, *square) if self.frames else square

    def __call__(self, image) -> np.ndarray:
        """Preprocesses one picture.

        Args:
            image: path of a file, its bytes, a PIL image, or uint8[h, w, 3].

        Returns:
            uint8[size, size, 3], or uint8[frames, size, size, 3].

        Raises:
            BadImage: it cannot be decoded, see `decoding.decode`, or is no strip of so many frames
                (`too_small`).
            FileNotFoundError: there is no such file.
            ValueError: an array of another type or shape.
        """
        picture = self._opened(image)
        if not self.frames:
            return self._made(picture)
        width, height = picture.size
        boxes = [(0, top, width, end) for top, end in frame_rows(height, self.frames)]
        return np.stack([self._made(picture.crop(box)) for box in boxes])

    def _made(self, picture):
        if self.mode == "pad":
            return self._padded(picture)
        size = self.size
        if self.mode == "squash":
            return _rgb(self._resized(picture, size, size))
        return _rgb(self._cropped(picture))

    def normalize(self, pixels) -> np.ndarray:
        """uint8[..., 3] -> float32[..., 3], (pixels / 255 - mean) / std; what a tower takes.

        Training and evaluation do it on the device (`objectives.normalizer`).
        """
        scaled = np.asarray(pixels, np.float32) / np.float32(255)
        return (scaled - np.float32(self.mean)) / np.float32(self.std)

    def section(self) -> dict:
        """Its options in a recipe's `config.image`: pictures that training decodes are RGB."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        own = ("size", "rgb", "frames")
        return {name: value for name, value in values.items() if name not in own}

    def _opened(self, image):
        """The picture as a PIL image."""
        if isinstance(image, str | os.PathLike):
            try:
                return self._opened(Path(image).read_bytes())
            except BadImage as error:
                detail = f"{image}: {error.detail}" if error.detail else str(image)
                raise BadImage(error.reason, detail) from error
        if isinstance(image, bytes):
            image = Image.fromarray(decode(image)) if self.rgb == "white" else open_picture(image)
        if isinstance(image, Image.Image):
            if self.rgb == "white":
                return Image.fromarray(to_rgb(image))
            return on_white(image) if self.rgb == "first" else image
        shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            what = f"{dtype}{list(shape)}" if shape is not None else type(image).__name__
            raise ValueError(
                f"A picture is a path, bytes of a file, a PIL image or uint8[h, w, 3], not {what}."
            )
        return Image.fromarray(np.asarray(image))

    def _resized(self, picture, height, width, box=None):
        return picture.resize((width, height), INTERPOLATIONS[self.interpolation], box=box)

    def _cropped(self, picture):
        width, height = picture.size
        size, short, target = self.size, min(height, width), self.short_side or self.size
        new_height, new_width = int(target * height / short), int(target * width / short)
        half = round if self.center == "round" else int
        top, left = half((new_height - size) / 2), half((new_width - size) / 2)
        if new_height * new_width <= MAX_PIXELS:
            whole = self._resized(picture, new_height, new_width)
            return whole.crop((left, top, left + size, top + size))
        # A strip hundreds of times as long as it is wide: resized whole it would fill the memory.
        # Pillow holds such a box in float32, so a pixel may be off by a few levels.
        x, y = width / new_width, height / new_height
        box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
        return self._resized(picture, size, size, box)

    def _padded(self, picture):
        size = self.size
        ratio = max(side / size for side in picture.size)
        width, height = (max(round(side / ratio), 1) for side in picture.size)
        resized = self._resized(picture, height, width)
        across, down = size - width, size - height
        border = (across // 2, down // 2, across - across // 2, down - down // 2)
        # In the picture's own mode, as OpenCLIP has it: of a palette `fill` is an index.
        fill = self.fill if len(resized.getbands()) == 1 else (self.fill,) * len(resized.getbands())
        square = ImageOps.expand(resized, border, fill)
        if resized.mode == "P":
            square.putpalette(resized.getpalette())
        return _rgb(square)


def _rgb(picture):
    return np.asarray(picture.convert("RGB"))


def frame_rows(height, frames):
    """(first row, row behind the last) of each frame of a film strip.

    Raises:
        BadImage: it has fewer rows than frames.
    """
    if height < frames:
        raise BadImage("too_small", f"{height} rows are no {frames} frames")
    return list(pairwise(number * height // frames for number in range(frames + 1)))


def resample(pixels, height, width, *, box=None, interpolation="bicubic"):
    """uint8[h, w, 3] -> uint8[height, width, 3] by Pillow, antialiased.

    Args:
        box: (left, top, right, bottom) of the part that is taken, in pixels; None is all.
        interpolation: one of INTERPOLATIONS.
    """
    picture = Image.fromarray(pixels)
    return np.asarray(picture.resize((width, height), INTERPOLATIONS[interpolation], box=box))
