"""Decoding of every kind of picture, and of what is none."""

import pickle
import struct
import zlib

import numpy as np
import pytest
from emoji_data import encoded, flat, noise
from PIL import Image

from vlrep_jax.data.decoding import BadImage, decode


@pytest.mark.parametrize("name", ["PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP", "JPEG", "AVIF"])
def test_formats_decode_to_their_pixels(name):
    image = np.full((6, 9, 3), (200, 100, 50), np.uint8)
    options = {"lossless": True} if name == "WEBP" else {}
    # JPEG and AVIF keep colours to a few levels even where nothing varies.
    tolerance = 4 if name in ("JPEG", "AVIF") else 0
    decoded = decode(encoded(image, name, **options))
    assert decoded.shape == (6, 9, 3) and decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded.astype(int), image, atol=tolerance)


def test_exif_rotation_is_applied():
    image = np.zeros((4, 6, 3), np.uint8)
    image[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows become columns from the right
    decoded = decode(encoded(image, "PNG", exif=exif))
    assert decoded.shape == (6, 4, 3)
    assert decoded[0, 3, 0] == 255


def test_16_bit_grey_is_scaled():
    image = Image.fromarray(np.array([[0, 257, 32768], [65535, 128, 129]], np.uint16))
    decoded = decode(encoded(image))
    # 65535 / 255 = 257 of 16 bits make one of 8; 128/257 rounds down, 129/257 up.
    np.testing.assert_array_equal(decoded[..., 0], [[0, 1, 128], [255, 0, 1]])
    assert (decoded == decoded[..., :1]).all()


def test_transparency_is_laid_on_white():
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0]], [[0, 0, 0, 51], [0, 0, 0, 255]]], np.uint8)
    expected = [[[255, 0, 0], [255] * 3], [[204] * 3, [0] * 3]]  # 255 * (1 - 51 / 255) = 204
    np.testing.assert_array_equal(decode(encoded(rgba)), expected)


def test_a_transparent_palette_entry_is_white():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    decoded = decode(encoded(image, transparency=1))
    np.testing.assert_array_equal(decoded[0, 0], [10, 20, 30])
    np.testing.assert_array_equal(decoded[1, 1], [255] * 3)


def test_grey_bilevel_and_cmyk_become_rgb():
    assert (decode(encoded(Image.new("L", (3, 3), 77))) == 77).all()
    assert (decode(encoded(Image.new("1", (3, 3), 1))) == 255).all()
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    np.testing.assert_allclose(decode(encoded(cmyk, "JPEG", quality=95))[4, 4], [254, 0, 0], atol=3)


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(name):
    frames = [Image.new("RGB", (4, 4), (value, value, value)) for value in (0, 255)]
    data = encoded(frames[0], name, save_all=True, append_images=frames[1:], lossless=True)
    assert (decode(data) == 0).all()


def png_of_size(width, height):
    def chunk(kind, body):
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes((width // 8 + 2) * 2))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


JPEG = encoded(noise(64, 64), "JPEG")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture", "format"),
        (EPS, "format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "format"),
        (png_of_size(20_000, 20_000), "too_large"),
        (png_of_size(9000, 9000), "too_large"),
        (flat(0, side=1), "too_small"),
        (encoded(np.zeros((1, 90, 3), np.uint8)), "too_small"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (encoded(noise(64, 64))[:3000], "truncated"),
        (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "not_finite"),
    ],
)
def test_what_cannot_be_used_says_why_in_one_word(data, reason):
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.reason == reason
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason


def test_the_pixel_cap_is_the_callers():
    with pytest.raises(BadImage, match="too_large: 8x8 of at most 63"):
        decode(flat(0), max_pixels=63)
    assert decode(flat(0), max_pixels=64).shape == (8, 8, 3)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about broken TIFF tags
def test_mutated_bytes_end_in_a_picture_or_a_reason():
    rng = np.random.default_rng(0)
    reasons = set()
    for name in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = encoded(noise(24, 24), name)
        for _ in range(60):
            mutated = bytearray(whole)
            for place in rng.integers(0, len(whole), 4):
                mutated[place] = rng.integers(256)
            try:
                assert decode(bytes(mutated), max_pixels=1_000_000).dtype == np.uint8
            except BadImage as error:
                reasons.add(error.reason)
    assert reasons <= {"format", "too_large", "too_small", "truncated", "corrupt", "not_finite"}
