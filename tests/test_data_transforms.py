"""What each augmentation does to a picture, and TRANSFORMS' contract."""

import pickle
from functools import partial

import numpy as np
import pytest
from emoji_data import noise

from vlrep_jax.data import transforms
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.transforms import TRANSFORMS


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
    np.testing.assert_array_equal(cropped, Preprocess(32, "squash")(image))


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
