"""Decoding of untrusted picture files, of any kind, to uint8[h, w, 3]."""

import io

import numpy as np
from PIL import Image, ImageOps

# Formats that are decoded in the process itself: EPS, for one, would start Ghostscript. Phones'
# MPO counts as JPEG. Pillow can be built without some of them, and then knows no such name.
Image.init()
_ALLOWED = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in _ALLOWED if name in Image.OPEN)
MAX_PIXELS = 64_000_000
MAX_SCANS = 500  # of a progressive JPEG
_USUAL_SCANS = 20

# What `BadImage.reason` means to the person whose picture it is.
WHY = {
    "changed": "it is not what it was a moment ago",
    "corrupt": "it is damaged",
    "empty": "the file is empty",
    "format": "it is no picture of a format that is read here",
    "not_finite": "it holds values that are no numbers",
    "too_large": "it is too large",
    "too_small": "a side of it is one pixel",
    "truncated": "the file is cut short",
    "unreadable": "its file cannot be read",
}


class BadImage(ValueError):
    """A picture that cannot be used; `reason` is one short stable word for counting."""

    def __init__(self, reason, detail=""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail

    @property
    def why(self):
        """The reason in words, to go on behind the picture's name and a colon."""
        limit = f" ({self.detail})" if self.detail and self.reason == "too_large" else ""
        return WHY.get(self.reason, self.reason) + limit

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
        BadImage: with reason `empty`, `format` (unknown or not allowed), `too_large` (its pixels,
            or the scans of a progressive JPEG), `too_small` (a side of one pixel), `truncated`,
            `corrupt` or `not_finite`.
    """
    return loaded(read_header(data, max_pixels), lambda image: to_rgb(upright(image)))


def open_picture(data, max_pixels=MAX_PIXELS):
    """Decodes an untrusted picture as it is, however thin, to a PIL image; errors as `decode`."""
    return loaded(read_header(data, max_pixels, min_side=1), lambda image: image)


def read_header(data, max_pixels=MAX_PIXELS, *, min_side=2):
    """Opens an untrusted picture and decodes nothing yet.

    Args:
        data, max_pixels: as in `decode`.
        min_side: what is thinner is `too_small`, in pixels.

    Returns:
        A PIL image that is not loaded; `loaded` does that.

    Raises:
        BadImage: as `decode`, for what a header tells.
    """
    if not data:
        raise BadImage("empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_large", f"more than {max_pixels} pixels") from error
    except Exception as error:
        raise BadImage("format", str(error)) from error
    if image.width * image.height > max_pixels:
        raise BadImage("too_large", f"{image.width}x{image.height} of at most {max_pixels} pixels")
    if min(image.size) < min_side:
        raise BadImage("too_small", f"{image.width}x{image.height}")
    if image.info.get("progressive"):
        _check_scans(data, image.width * image.height, max_pixels)
    return image


def _check_scans(data, pixels, max_pixels):
    """Every scan of a progressive JPEG visits all pixels; encoders write about ten of them."""
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS or scans * pixels > _USUAL_SCANS * max_pixels:
        raise BadImage("too_large", f"{pixels} pixels in {scans} scans")


def loaded(image, convert):
    """`convert` of an opened picture, whatever its decoder raises being a BadImage."""
    try:
        image.load()
        return convert(image)
    except BadImage:
        raise
    except Exception as error:  # decoders raise anything on mutated bytes
        short = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise BadImage("truncated" if short else "corrupt", str(error)) from error


def upright(image):
    """A PIL image turned as its EXIF block says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image


def to_rgb(image):
    """A PIL picture of any mode -> uint8[h, w, 3], as `decode` says; it is not turned upright.

    Raises:
        BadImage: with reason `not_finite`.
    """
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
    return np.array(on_white(image))


def on_white(image):
    """A PIL picture as RGB, with what is transparent laid on white."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        image = ground
    return image.convert("RGB")
