"""Clips: what a pool over time sees, how strips become clips, and pictures that move."""

from functools import partial

import numpy as np
import pytest
from emoji_data import encoded, grey_source, noise
from tiny_models import CLIPS, FRAME, PAIR, TOKENS, apply, drawn, tower

from vlrep_jax import models
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.data.sources.moving import MOTIONS, strip
from vlrep_jax.data.transforms import TRANSFORMS
from vlrep_jax.data.zero_shot_sets import ZERO_SHOT_SETS

# Models.


def test_the_mean_sees_no_order_and_a_transformer_does():
    for pool, sees in (("mean", False), ("transformer", True)):
        module = tower("video", pool=pool)
        params = drawn(module, CLIPS)
        run = partial(apply, module, params)
        found, reversed_ = run(CLIPS), run(CLIPS[:, ::-1])
        assert (np.abs(found - reversed_).max(axis=1) > 1e-3).all() == sees
        if not sees:
            np.testing.assert_allclose(found, reversed_, atol=1e-5)
        other = CLIPS.copy()
        other[:, 1] = 1  # every frame counts
        assert (np.abs(found - run(other)).max(axis=1) > 1e-3).all()


def test_a_model_of_clips_is_made_from_sections_and_embeds_like_any_other():
    image = {"name": "video", "frames": 3, "width": 8, "heads": 2, "embed_dim": 6}
    model = models.create(
        "dual_encoder",
        image=image | {"frame": {"name": "vit", **FRAME}},
        text=PAIR["text"],
        towers={"activation": "quick_gelu"},
    )
    assert model.image.activation == model.image.frame.activation == "quick_gelu"
    assert models.image_shape(model) == (3, 8, 8, 3) and models.frames(model) == 3
    assert models.input_sizes(model) == (8, 6)
    params = drawn(model, CLIPS, TOKENS)
    rows = apply(partial(model.apply, method="encode_image"), params, CLIPS)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    plain = models.create("dual_encoder", **PAIR)
    assert models.image_shape(plain) == (8, 8, 3) and models.frames(plain) == 0


def test_clips_of_another_length_and_pools_that_nothing_knows_are_refused():
    module = tower("video")
    params = drawn(module, CLIPS)
    for clips in (CLIPS[:, :2], CLIPS[:, 0]):
        with pytest.raises(ValueError, match=r"this tower expects \(batch, 3, 8, 8, 3\)"):
            module.apply({"params": params}, clips)
    with pytest.raises(ValueError, match="pool='max'; known: mean, transformer"):
        drawn(tower("video", pool="max"), CLIPS)
    with pytest.raises(ValueError, match="width=16, but the frame's features have 8"):
        drawn(tower("video", width=16), CLIPS)


# Data.


def test_a_strip_becomes_its_frames_each_made_like_a_picture():
    frames = [noise(40, 30, seed=seed) for seed in range(4)]
    data = encoded(np.concatenate(frames))
    made = Preprocess(16, frames=4)
    clip = made(data)
    assert clip.shape == made.shape == (4, 16, 16, 3)
    one = Preprocess(16)
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(clip[number], one(frame))
    assert "frames" not in made.section() and one.shape == (16, 16, 3)
    with pytest.raises(ValueError, match="too_small: 3 rows are no 4 frames"):
        made(noise(3, 30))


def test_training_crops_all_frames_of_a_clip_alike():
    frame = noise(40, 40)
    clip = partial(TRANSFORMS["clip"], size=16, frames=3, crop=(0.4, 0.6))
    made = clip(np.concatenate([frame, 255 - frame, frame]), np.random.default_rng(0))
    assert made.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(made[0], made[2])
    # Resampled in turn, both round.
    np.testing.assert_allclose(made[0].astype(int) + made[1], 255, atol=2)
    other = clip(np.concatenate([frame] * 3), np.random.default_rng(1))
    assert (other[0] != made[0]).any()


def test_forth_and_back_are_the_same_frames_in_reversed_order():
    picture, side, count = noise(20, 20), 32, 5
    clips = {m: strip(picture, m, count, side).reshape(count, side, side, 3) for m in MOTIONS}
    for forth, back in (MOTIONS[:2], MOTIONS[2:4], MOTIONS[4:]):
        np.testing.assert_array_equal(clips[forth], clips[back][::-1])
    assert len({clip.tobytes() for clip in clips.values()}) == 6

    def middle(frame):
        return np.argwhere((frame < 250).any(axis=2)).mean(axis=0)

    way = {m: middle(clips[m][-1]) - middle(clips[m][0]) for m in MOTIONS[:4]}
    assert way["moving down"][0] > 10 and abs(way["moving down"][1]) < 1
    assert way["moving left"][1] < -10 and abs(way["moving left"][0]) < 1
    area = [(frame < 250).any(axis=2).sum() for frame in clips["growing"]]
    assert area == sorted(area) and area[-1] > 5 * area[0]


def test_every_picture_moves_in_every_way():
    source = SOURCES["moving"](grey_source(3, i2={"identity": "own"}), frames=2, side=16)
    assert len(source) == 18
    clip = source[13]
    assert clip.captions == ("number 2 moving right",) and clip.identity == "own/moving right"
    assert (clip.key, clip.labels) == ("2/moving right", {"motion": "moving right"})
    assert source[0].identity == ""
    bad = SOURCES["moving"](grey_source(2, i0={"image": b"x"}, i1={"problem": "missing"}))
    assert [bad[0].problem, bad[6].problem] == ["format", "missing"]
    pair = ZERO_SHOT_SETS["left_right"](source)
    assert pair.class_names == ("moving left", "moving right")
    assert pair.labels.tolist() == [0, 1, -1, -1, -1, -1] * 3
    assert len(ZERO_SHOT_SETS["motion"](source).class_names) == 6
    with pytest.raises(ValueError, match="frames=1 must be at least 2"):
        SOURCES["moving"](grey_source(1), frames=1)
