"""Evaluation preprocessing against Pillow by hand, and its description in other projects' words."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from emoji_data import encoded, noise
from PIL import Image

from vlrep_jax.data import preprocess
from vlrep_jax.data.decoding import BadImage
from vlrep_jax.data.preprocess import CLIP_MEAN, CLIP_STD, INTERPOLATIONS, Preprocess
from vlrep_jax.data.preprocess_files import (
    from_huggingface,
    from_openclip,
    to_huggingface,
    to_openclip,
)


def pillow(image, height, width, kind="bicubic"):
    return np.asarray(Image.fromarray(image).resize((width, height), INTERPOLATIONS[kind]))


@pytest.mark.parametrize("shape", [(300, 200), (200, 301), (224, 224), (50, 640), (31, 33)])
@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_crop_is_the_resized_whole_s_middle(shape, kind):
    image, size = noise(*shape), 64
    height, width = (int(size * side / min(shape)) for side in shape)
    top, left = round((height - size) / 2), round((width - size) / 2)
    whole = pillow(image, height, width, kind)
    expected = whole[top : top + size, left : left + size]
    np.testing.assert_array_equal(Preprocess(size, interpolation=kind)(image), expected)


def test_a_half_pixel_goes_where_the_originals_put_it():
    """Three columns too many: 1.5 rounds to 2, and is 1 rounded down; of one, 0.5 goes to 0."""
    for extra, even, down in ((1, 0, 0), (3, 2, 1), (5, 2, 2)):
        image = noise(8, 8 + extra)
        np.testing.assert_array_equal(Preprocess(8)(image), image[:, even : even + 8])
        floored = Preprocess(8, center="floor")(image)
        np.testing.assert_array_equal(floored, image[:, down : down + 8])


def test_a_short_side_of_its_own_leaves_a_margin():
    image = noise(40, 40)
    whole = pillow(image, 36, 36)
    np.testing.assert_array_equal(Preprocess(32, short_side=36)(image), whole[2:34, 2:34])


def test_squash_ignores_the_shape_and_pad_keeps_it():
    image = noise(40, 80)
    np.testing.assert_array_equal(Preprocess(20, "squash")(image), pillow(image, 20, 20))
    padded = Preprocess(20, "pad", fill=7)(image)
    np.testing.assert_array_equal(padded[5:15], pillow(image, 10, 20))
    assert (padded[:5] == 7).all() and (padded[15:] == 7).all()
    assert (Preprocess(20, "pad", fill=7)(noise(1, 300))[9] != 7).any()  # a line is still drawn


def test_a_long_strip_costs_no_more_memory_than_the_largest_picture(monkeypatch):
    assert Preprocess(224)(np.zeros((2, 60_000, 3), np.uint8)).shape == (224, 224, 3)
    image = noise(50, 640)
    exact = Preprocess(64)(image)
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 64 * 640)
    strip = Preprocess(64)(image)
    # The same part of the picture; the interpolation's weights are rounded to float32.
    difference = np.abs(strip.astype(int) - exact)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_path_bytes_picture_and_array_are_the_same_picture(tmp_path):
    image = noise(30, 20)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    forms = (path, str(path), path.read_bytes(), Image.fromarray(image), image)
    results = [Preprocess(16)(form) for form in forms]
    assert all((result == results[0]).all() for result in results)


def test_what_is_no_picture_is_told(tmp_path):
    (tmp_path / "b.png").write_bytes(b"?")
    with pytest.raises(BadImage, match=r"format: .*b\.png"):
        Preprocess(16)(tmp_path / "b.png")
    with pytest.raises(FileNotFoundError):
        Preprocess(16)(tmp_path / "none.png")
    for wrong, what in (
        (np.zeros((4, 4, 3), np.float32), r"float32\[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"uint8\[4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8\[0, 4, 3\]"),
        (None, "NoneType"),
    ):
        with pytest.raises(ValueError, match=rf"uint8\[h, w, 3\], not {what}"):
            Preprocess(16)(wrong)


def test_normalize_by_hand():
    made = Preprocess(1, mean=(0.5, 0.0, 0.2), std=(0.5, 1.0, 0.4))
    # (255 / 255 - 0.5) / 0.5 = 1, 0 / 255 = 0, (153 / 255 - 0.2) / 0.4 = 1
    np.testing.assert_allclose(made.normalize(np.uint8([255, 0, 153])), [1, 0, 1], rtol=1e-6)
    assert made.normalize(np.zeros((2, 3), np.uint8)).dtype == np.float32


def test_equal_ones_are_equal_and_travel_to_workers():
    one = Preprocess(64, mean=[0.5] * 3)
    assert one == Preprocess(64, mean=(0.5,) * 3) and hash(one) == hash(
        pickle.loads(pickle.dumps(one))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "stretch"}, "mode='stretch' is unknown; it is one of crop, squash, pad"),
        ({"interpolation": "cubic"}, "interpolation='cubic' is unknown"),
        ({"center": "up"}, "center='up' is unknown"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\) must be three"),
        ({"std": (0.5, 0.5, float("nan"))}, "std=.* must be three finite"),
        ({"std": (0.5, 0.5, 0)}, "must be positive"),
        ({"size": 0}, "size=0 must be at least 1"),
        ({"short_side": 8}, "short_side=8 must be at least size=16, in mode 'crop'"),
        ({"short_side": 20, "mode": "squash"}, "in mode 'crop'"),
        ({"fill": 256}, "fill=256 must be a level"),
        ({"rgb": "drop"}, "rgb='drop' is unknown; it is one of white, first, last"),
    ],
)
def test_impossible_options_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**{"size": 16, **options})


HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
THROUGH_HUGGING_FACE = [
    Preprocess(224, center="floor"),
    Preprocess(336, short_side=350, center="floor", interpolation="bilinear"),
    Preprocess(256, "squash", **HALF),
    Preprocess(384, "squash", interpolation="lanczos"),
]
THROUGH_OPENCLIP = [
    Preprocess(224),
    Preprocess(256, "squash", **HALF, interpolation="bilinear"),
    Preprocess(240, "pad", fill=128),
]


@pytest.mark.parametrize("made", THROUGH_HUGGING_FACE, ids=str)
def test_there_and_back_through_hugging_face(made):
    assert from_huggingface(to_huggingface(made)) == replace(made, rgb="first")


@pytest.mark.parametrize("made", THROUGH_OPENCLIP, ids=str)
def test_there_and_back_through_openclip(made):
    assert from_openclip(to_openclip(made)) == replace(made, rgb="last")


def test_older_and_shorter_files_are_read():
    old = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "resample": 3,
        "size": 224,
    }
    assert from_huggingface(old) == Preprocess(224, center="floor", rgb="first")
    siglip = {"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 9, "width": 9}}
    assert from_huggingface(siglip) == Preprocess(9, "squash", **HALF, rgb="first")
    assert from_openclip({}, 240) == Preprocess(240, rgb="last")
    cfg = {"mean": 0.5, "std": [0.5, 0.5, 0.5], "resize_mode": "squash", "size": [64, 64]}
    assert from_openclip(cfg, 32) == Preprocess(64, "squash", **HALF, rgb="last")


CLIP = {"image_processor_type": "CLIPImageProcessor"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "names no image_processor_type"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor is not known"),
        ({**CLIP, "do_pad": True}, r"not known here: \{'do_pad': True\}"),
        ({**CLIP, "do_resize": False}, "with do_resize=False"),
        ({**CLIP, "rescale_factor": 1.0}, "rescale_factor=1.0, not 1/255"),
        ({**CLIP, "resample": 4}, "resample=4; known"),
        ({**CLIP, "do_center_crop": False}, "size={'shortest_edge': 224}, crop_size=None: known"),
        ({**CLIP, "crop_size": {"height": 224, "width": 200}}, "known are a shortest_edge with"),
        ({**CLIP, "size": {"longest_edge": 224}}, "known are a shortest_edge with"),
        ({**CLIP, "crop_size": 256}, "short_side=224 must be at least size=256"),
    ],
)
def test_a_hugging_face_option_that_is_not_ours_is_told(config, message):
    with pytest.raises(ValueError, match=message):
        from_huggingface(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "size=None: one side"),
        ({"size": [224, 256]}, "one side, or two equal ones"),
        ({"size": 9, "mode": "L"}, "mode='L'; 'RGB' is known"),
        ({"size": 9, "resize_mode": "fit"}, "resize_mode='fit'; known: shortest, squash, longest"),
        ({"size": 9, "interpolation": "lanczos"}, "interpolation='lanczos' is not known"),
        ({"size": 9, "crop_pct": 0.9}, "not known here: {'crop_pct': 0.9}"),
    ],
)
def test_an_openclip_option_that_is_not_ours_is_told(config, message):
    with pytest.raises(ValueError, match=message):
        from_openclip(config)


def test_what_others_lack_is_refused():
    with pytest.raises(ValueError, match="mode='pad': Hugging Face"):
        to_huggingface(Preprocess(9, "pad"))
    with pytest.raises(ValueError, match="interpolation='nearest': OpenCLIP has"):
        to_openclip(Preprocess(9, interpolation="nearest"))
    with pytest.raises(ValueError, match="short_side=12: OpenCLIP crops the whole"):
        to_openclip(Preprocess(9, short_side=12))
