"""Pictures: decoding of untrusted bytes, evaluation preprocessing and training augmentation.

Pure functions of NumPy arrays; every random one takes its `numpy.random.Generator`.
"""

import io

import numpy as np
from PIL import Image, ImageOps

# Formats that are decoded in the process itself: EPS, for one, would start Ghostscript. Phones'
# MPO counts as JPEG. Pillow can be built without some of them, and then knows no such name.
Image.init()
_ALLOWED = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in _ALLOWED if name in Image.OPEN)
MAX_PIXELS = 64_000_000
_WHITE = (255, 255, 255)


class BadImage(ValueError):
    """A picture that cannot be used; `reason` is one short stable word for counting."""

    def __init__(self, reason, detail=""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason,)


def decode(data, max_pixels=MAX_PIXELS):
    """Decodes an untrusted picture to uint8[h, w, 3].

    The EXIF rotation is applied, transparency is laid on white, 16 bits are scaled to 8, and an
    animation gives its first frame.

    Args:
        data: bytes of a file in one of FORMATS.
        max_pixels: larger pictures are refused from their header, before any pixel is decoded.

    Raises:
        BadImage: with reason `empty`, `format` (unknown or not allowed), `too_large`, `too_small`
            (a side of one pixel), `truncated`, `corrupt` or `not_finite`.
    """
    if not data:
        raise BadImage("empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_large", str(error)) from error
    except Exception as error:
        raise BadImage("format", str(error)) from error
    if image.width * image.height > max_pixels:
        raise BadImage("too_large", f"{image.width}x{image.height} of at most {max_pixels} pixels")
    if min(image.size) < 2:
        raise BadImage("too_small", f"{image.width}x{image.height}")
    try:
        image.load()
        return _to_rgb(_upright(image))
    except BadImage:
        raise
    except Exception as error:  # decoders raise anything on mutated bytes
        short = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise BadImage("truncated" if short else "corrupt", str(error)) from error


def _upright(image):
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image


def _to_rgb(image):
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image, np.float32)
        if not np.isfinite(pixels).all():
            raise BadImage("not_finite")
        # Floats count from 0 to 1, integers beyond a byte from 0 to 65535.
        if image.mode == "F" and pixels.max() <= 1:
            pixels = pixels * 255
        elif image.mode.startswith("I;16") or pixels.max() > 255:
            pixels = pixels / 257
        grey = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        image = ground
    return np.array(image.convert("RGB"))


def _crop_resize(image, box, height, width):
    # One resampling for crop and resize: its memory is that of the result, however long the side.
    picture = Image.fromarray(image)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box))


def resize(image, height, width):
    """uint8[h, w, 3] -> uint8[height, width, 3] by antialiased bicubic interpolation."""
    return _crop_resize(image, None, height, width)


def center_crop(image, size):
    """The middle uint8[size, size, 3] of an image of at least that size."""
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def eval_image(image, size, mode="crop"):
    """Evaluation preprocessing, uint8[h, w, 3] -> uint8[size, size, 3].

    Args:
        mode: `crop` is CLIP's (short side to `size`, then the centre), `squash` is SigLIP's (both
            sides to `size`).

    Raises:
        ValueError: unknown mode.
    """
    if mode == "squash":
        return resize(image, size, size)
    if mode != "crop":
        raise ValueError(f"mode={mode!r} is unknown; it is 'crop' (CLIP) or 'squash' (SigLIP).")
    height, width = image.shape[:2]
    short = min(height, width)
    new_height, new_width = int(size * height / short), int(size * width / short)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    # The same pixels as resizing the whole and then cropping it, in the source's coordinates.
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    return _crop_resize(image, box, size, size)


def random_resized_crop(image, size, rng, scale=(0.9, 1.0)):
    """A random square of `scale` times the largest square's area, as uint8[size, size, 3]."""
    height, width = image.shape[:2]
    side = min(height, width) * np.sqrt(rng.uniform(*scale))
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    return _crop_resize(image, (left, top, left + side, top + side), size, size)


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
    return resize(image, size, size)


def _center(image, rng, *, size):
    del rng
    return eval_image(image, size)


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
