"""Decoding of every kind of picture, exact evaluation preprocessing, and TRANSFORMS' contract."""

import pickle
import struct
import zlib
from functools import partial

import numpy as np
import pytest
from emoji_data import encoded, flat
from PIL import Image

from vlrep_jax.data import transforms
from vlrep_jax.data.transforms import TRANSFORMS, BadImage, decode, eval_image


def noise(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, channels), np.uint8)
    image = Image.fromarray(small.squeeze())
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


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


@pytest.mark.parametrize("shape", [(300, 200), (200, 301), (224, 224), (50, 640), (31, 33)])
def test_eval_crop_equals_resizing_the_short_side_and_cropping(shape):
    image, size = noise(*shape), 64
    height, width = shape
    short = min(shape)
    new = (int(size * width / short), int(size * height / short))
    whole = np.asarray(Image.fromarray(image).resize(new, Image.Resampling.BICUBIC))
    expected = transforms.center_crop(whole, size)
    # The two differ by the rounding of the interpolation's 8-bit intermediate result.
    difference = np.abs(eval_image(image, size).astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_a_long_thin_picture_costs_no_more_memory_than_its_crop():
    assert eval_image(np.zeros((2, 60_000, 3), np.uint8), 224).shape == (224, 224, 3)


def test_eval_squash_keeps_every_side():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 255
    squashed = eval_image(image, 20, "squash")
    assert squashed.shape == (20, 20, 3)
    assert (squashed[:, :8] == 0).all() and (squashed[:, 12:] == 255).all()
    with pytest.raises(ValueError, match="'stretch' is unknown; it is 'crop'"):
        eval_image(image, 20, "stretch")


def test_center_crop_takes_the_middle():
    image = np.arange(5 * 7).reshape(5, 7, 1)
    np.testing.assert_array_equal(transforms.center_crop(image, 3)[..., 0][0], [9, 10, 11])


def test_affine_without_range_is_the_identity_and_shifts_are_on_white():
    image = noise(20, 20)
    still = {"degrees": 0, "scale": (1, 1), "shift": 0}
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(transforms.random_affine(image, rng, **still), image)
    black = np.zeros((20, 20, 3), np.uint8)
    smaller = transforms.random_affine(black, rng, degrees=0, scale=(0.5, 0.5), shift=0)
    # Half the size about the centre: 10 of 20 pixels a side stay black, the rest is white.
    assert (smaller[6:14, 6:14] == 0).all() and (smaller[:4] == 255).all()
    assert abs((smaller < 128).all(-1).sum() - 100) <= 20


def test_affine_turns_about_the_centre():
    image = np.zeros((21, 21, 3), np.uint8)
    image[10, 10] = 255
    rng = np.random.default_rng(3)
    for _ in range(5):
        turned = transforms.random_affine(image, rng, degrees=180, scale=(1, 1), shift=0, fill=0)
        assert turned[10, 10, 0] == turned.max() > 60


def test_color_jitter_scales_by_what_it_says():
    grey = np.full((4, 4, 3), 100, np.uint8)

    class Highest:
        def uniform(self, low, high, size):
            return np.full(size, high)

    options = {"brightness": 0.2, "contrast": 0.0, "saturation": 0.0}
    assert (transforms.color_jitter(grey, Highest(), **options) == 120).all()
    image = np.array([[[0, 0, 0], [200, 200, 200]]], np.uint8)
    options = {"brightness": 0.0, "contrast": 0.1, "saturation": 0.0}
    # About the mean of 100 the ends move out by a tenth; black stays at its limit.
    assert transforms.color_jitter(image, Highest(), **options)[0, :, 0].tolist() == [0, 210]


def test_random_crop_of_the_whole_square_is_the_plain_resize():
    image = noise(60, 60)
    rng = np.random.default_rng(0)
    cropped = transforms.random_resized_crop(image, 32, rng, scale=(1.0, 1.0))
    np.testing.assert_array_equal(cropped, transforms.resize(image, 32, 32))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("shape", [(72, 72), (40, 90), (2, 300), (500, 300)])
def test_transforms_give_squares_as_a_function_of_the_generator(name, shape):
    transform = pickle.loads(pickle.dumps(partial(TRANSFORMS[name], size=32)))
    image = noise(*shape)
    before = image.copy()
    once, again = (transform(image, np.random.default_rng((1, 2))) for _ in range(2))
    assert once.shape == (32, 32, 3) and once.dtype == np.uint8
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(image, before)
    if name in ("random_crop", "augment") and min(shape) > 2:
        assert (transform(image, np.random.default_rng((1, 3))) != once).any()


def test_nothing_is_mirrored_unless_asked():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :24] = 255  # still left of the middle after every crop, turn and shift
    asked = partial(TRANSFORMS["augment"], size=32, affine={"fill": (0, 0, 0)}, flip_share=0.5)
    plain = partial(TRANSFORMS["augment"], size=32, affine={"fill": (0, 0, 0)})
    left = [plain(image, np.random.default_rng(i))[:, :16].mean() for i in range(20)]
    right = [plain(image, np.random.default_rng(i))[:, 16:].mean() for i in range(20)]
    assert min(np.subtract(left, right)) > 0
    sides = [asked(image, np.random.default_rng(i))[16].astype(int) for i in range(20)]
    assert {np.sign(row[:16].sum() - row[16:].sum()) for row in sides} == {-1, 1}
