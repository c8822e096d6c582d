"""What each augmentation does to a picture, and TRANSFORMS' contract."""

import pickle
from functools import partial

import numpy as np
import pytest
from emoji_data import noise

from vlrep_jax.data import crops, transforms
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.rand_augment import OPERATIONS, rand_augment
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
    cropped = transforms.random_square_crop(image, 32, rng, scale=(1.0, 1.0))
    np.testing.assert_array_equal(cropped, Preprocess(32, "squash")(image))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("shape", [(72, 72), (40, 90), (2, 300), (500, 300)])
def test_transforms_give_squares_as_a_function_of_the_generator(name, shape):
    options = {"frames": 2} if name == "clip" else {}
    transform = pickle.loads(pickle.dumps(partial(TRANSFORMS[name], size=32, **options)))
    image = noise(*shape)
    before = image.copy()
    once, again = (transform(image, np.random.default_rng((1, 2))) for _ in range(2))
    expected = (2, 32, 32, 3) if name == "clip" else (32, 32, 3)
    assert once.shape == expected and once.dtype == np.uint8
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


def test_area_box_covers_what_it_says_within_its_ratio():
    rng = np.random.default_rng(0)
    drawn = [crops.area_box(300, 400, rng, (0.2, 0.6)) for _ in range(500)]
    for left, top, right, bottom in drawn:
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        # A pixel of rounding at a side of at least 130.
        assert 0.72 < (right - left) / (bottom - top) < 1.36
        assert 0.19 < (right - left) * (bottom - top) / 120_000 < 0.61
    assert len({box[:2] for box in drawn}) > 400


def test_area_box_falls_back_on_the_middle():
    # Of 640 x 427 no 90 % fit within 4:3: 427 * 4 / 3 = 569 wide, (640 - 569) // 2 = 35 from left.
    assert crops.area_box(427, 640, np.random.default_rng(0)) == (35, 0, 604, 427)
    assert crops.area_box(640, 427, np.random.default_rng(0)) == (0, 35, 427, 604)


def test_square_box_has_the_share_of_the_largest_square():
    for seed in range(50):
        left, top, right, bottom = crops.square_box(
            100, 400, np.random.default_rng(seed), (0.25, 0.25)
        )
        assert right - left == pytest.approx(50) and bottom - top == pytest.approx(50)
        assert 0 <= left <= 350 and 0 <= top <= 50


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_rand_augment_do_something_and_keep_the_shape(name):
    image = noise(40, 60)
    out = [
        rand_augment(image, np.random.default_rng(i), operations=1, magnitude=20, names=[name])
        for i in range(4)
    ]
    assert all(o.shape == image.shape and o.dtype == np.uint8 for o in out)
    # Full contrast has nothing to stretch, and the identity is one.
    still = name in ("identity", "autocontrast")
    assert all((o == image).all() == still for o in out)
    two_ways = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate"}
    two_ways |= {"brightness", "color", "contrast", "sharpness"}
    assert (len({o.tobytes() for o in out}) == 2) == (name in two_ways)


def test_rand_augment_by_hand():
    image = np.full((30, 30, 3), 100, np.uint8)

    class Plus:
        integers = staticmethod(lambda high: 0)
        random = staticmethod(lambda: 0.0)

    def one(name, magnitude):
        return rand_augment(image, Plus, operations=1, magnitude=magnitude, names=[name])

    assert (one("brightness", 15) == 145).all()  # 100 * (1 + 0.9 / 2)
    assert (one("solarize", 30) == 155).all()  # all above 0 are inverted
    assert (one("solarize", 10) == 100).all()  # only above 170
    assert (one("posterize", 30) == 96).all()  # four bits: 0x64 -> 0x60
    # 150 / 331 of 30 pixels are 13, out of the picture to the right.
    moved = one("translate_x", 30)
    assert (moved[:, :13] == 128).all() and (moved[:, 13:] == 100).all()
    assert (one("color", 30) == 100).all()  # grey has no colour


def test_rand_augment_is_a_function_of_the_generator_and_of_the_options():
    image = noise(40, 40)
    options = {"size": 32, "affine": None, "rand_augment": {"operations": 2, "magnitude": 12}}
    transform = partial(TRANSFORMS["augment"], **options)
    outs = [transform(image, np.random.default_rng(i)) for i in (1, 1, 2, 3, 4)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert len({o.tobytes() for o in outs}) == 4
    with pytest.raises(ValueError, match=r"no operations \['colour'\]; it has \['identity'"):
        rand_augment(image, np.random.default_rng(0), names=["colour"])
    with pytest.raises(ValueError, match=r"magnitude=31 must be between 0 and 30"):
        rand_augment(image, np.random.default_rng(0), magnitude=31)


def test_grey_share_is_how_often_colour_goes():
    image = noise(40, 40)
    transform = partial(TRANSFORMS["augment"], size=16, affine=None, grey_share=0.5)
    greys = [np.ptp(transform(image, np.random.default_rng(i)), -1).max() == 0 for i in range(60)]
    assert 15 < sum(greys) < 45
