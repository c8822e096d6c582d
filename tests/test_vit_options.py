"""The vision transformer's convolutional stem and patch dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import IMAGES, drawn, tower

from vlrep_jax.models.vit import ConvStem, keep_random


def test_a_conv_stem_makes_one_token_a_patch():
    stem = ConvStem(patch_size=4, width=8, ln_eps=1e-5, dtype=jnp.float32)
    params = drawn(stem, IMAGES)
    assert jax.tree.map(jnp.shape, params)["conv_0"]["kernel"] == (3, 3, 3, 4)
    assert jax.tree.map(jnp.shape, params)["conv_1"]["kernel"] == (3, 3, 4, 8)

    def tokens(images):
        return stem.apply({"params": params}, images)

    assert tokens(IMAGES).shape == (3, 4, 8)
    # Rows of an 8 x 8 picture: the token at the lower right never sees the upper left corner.
    corner = IMAGES.copy()
    corner[:, 0, 0] += 1
    changed = np.abs(tokens(corner) - tokens(IMAGES)).max(axis=(0, 2)) > 1e-6
    assert changed.tolist() == [True, False, False, False]


@pytest.mark.parametrize("changed", [{"image_size": 9, "patch_size": 3}, {"width": 7}])
def test_a_conv_stem_that_cannot_halve_says_what_it_needs(changed):
    model = tower("vit", stem="conv", **{"heads": 1, **changed})
    size = model.image_size
    with pytest.raises(ValueError, match="stem='conv' needs a patch_size that is a power of two"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_evaluation_sees_every_patch_and_training_a_share(stem, pool):
    whole = tower("vit", pool=pool, stem=stem)
    some = tower("vit", pool=pool, stem=stem, patch_keep=0.5)
    variables = {"params": drawn(whole, IMAGES)}
    rngs = {"dropout": jax.random.key(1)}
    np.testing.assert_array_equal(whole.apply(variables, IMAGES), some.apply(variables, IMAGES))
    trained = some.apply(variables, IMAGES, train=True, rngs=rngs)
    assert trained.shape == whole.apply(variables, IMAGES).shape
    assert np.abs(trained - whole.apply(variables, IMAGES)).max() > 1e-4


def test_dropped_patches_get_no_gradient():
    some = tower("vit", pool="cls", patch_keep=0.5)
    variables = {"params": drawn(some, IMAGES)}

    def total(images, key):
        features = some.apply(variables, images, train=True, rngs={"dropout": key})
        return (features * np.arange(1.0, 7.0, dtype=np.float32)[None]).sum()

    def seen(key):
        gradient = np.abs(jax.grad(total)(IMAGES, key))
        patches = gradient.reshape(3, 2, 4, 2, 4, 3).max(axis=(2, 4, 5)).reshape(3, 4)
        return patches > 0

    draws = [seen(jax.random.key(i)) for i in range(4)]
    assert all((draw.sum(axis=1) == 2).all() for draw in draws)  # 2 of the 4 patches, in every row
    assert any((draw != draws[0]).any() for draw in draws)


def test_kept_tokens_stay_in_order_and_are_drawn_row_by_row():
    x = jnp.broadcast_to(jnp.arange(10.0)[None, :, None], (64, 10, 1))
    kept = np.asarray(keep_random(jax.random.key(0), x, 0.3))[:, :, 0]
    assert kept.shape == (64, 3)
    assert (np.diff(kept, axis=1) > 0).all()
    assert len({tuple(row) for row in kept}) > 20
    # Every token is as likely: 64 rows keep each one 19.2 times on average, sd 3.7.
    counts = np.bincount(kept.astype(int).ravel(), minlength=10)
    assert counts.min() > 5 and counts.max() < 35


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_outside_of_0_to_1_is_refused(share):
    with pytest.raises(ValueError, match=r"patch_keep=.* above 0 and at most 1"):
        jax.eval_shape(tower("vit", patch_keep=share).init, jax.random.key(0), IMAGES)
