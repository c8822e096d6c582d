"""Every form of attention gives the plain form's values and gradients, where it can be run.

The TPU's kernel runs here in Pallas's interpreter; cuDNN's needs a GPU.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pallas_tpu

from vlrep_jax import models
from vlrep_jax.models.attention import ATTENTIONS
from vlrep_jax.models.transformer import Transformer


def inputs(queries, keys, dtype=jnp.float32):
    draw = np.random.default_rng(0).normal
    shapes = ((2, queries, 2, 16), (2, keys, 2, 16), (2, keys, 2, 16))
    return [jnp.asarray(draw(size=shape), dtype) for shape in shapes]


def value_and_gradients(form, arrays, mask, causal):
    weights = np.random.default_rng(1).normal(size=arrays[0].shape)

    def total(*arrays):
        out = ATTENTIONS[form](*arrays, mask, causal)
        return (out * weights).sum(), out

    gradient = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
    (_, out), gradients = gradient(*arrays)
    return out, *gradients


@pytest.mark.parametrize(
    ("queries", "keys", "causal", "masked"),
    [
        (5, 5, False, True),
        (130, 130, True, False),
        (1, 140, False, False),
        (1, 128, False, False),  # padded queries find no padded key
    ],
)
def test_the_tpu_kernel_is_the_plain_form(queries, keys, causal, masked):
    """Sizes that are no multiple of its blocks: what is padded must not be seen."""
    lengths = jnp.array([[3], [keys]])
    mask = (jnp.arange(keys)[None] < lengths)[:, None, None] if masked else None
    arrays = inputs(queries, keys)
    plain = value_and_gradients("xla", arrays, mask, causal)
    with pallas_tpu.force_tpu_interpret_mode():
        fused = value_and_gradients("flash", arrays, mask, causal)
    for a, b in zip(plain, fused, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # float32 sums over 140 keys


def test_a_model_hands_its_attention_to_all_towers():
    model = models.create("ViT-B-32", attention="flash")
    assert model.image.attention == model.text.attention == "flash"
    assert models.create("clip-article", attention="flash").attention == "flash"
    assert models.create("ViT-B-32").image.attention == "xla"


def run_stack(attention, dtype=jnp.float32):
    stack = Transformer(depth=1, heads=2, attention=attention, dtype=dtype)
    return stack.init_with_output(jax.random.key(0), jnp.ones((2, 5, 32)))[0]


def test_a_stack_computes_attention_in_the_form_it_is_told():
    with pallas_tpu.force_tpu_interpret_mode():
        fused = run_stack("flash")
    np.testing.assert_allclose(fused, run_stack("xla"), atol=1e-5)


def test_a_kernel_of_another_platform_is_refused_by_name():
    with pytest.raises(ValueError, match="attention='cudnn' computes in bfloat16, not float32"):
        run_stack("cudnn")
    with pytest.raises(ValueError, match="attention='cudnn' cannot be used here"):
        run_stack("cudnn", jnp.bfloat16)
    with pytest.raises(ValueError, match="interpret mode"):  # jax's own words
        run_stack("flash")
    with pytest.raises(ValueError, match="attention 'cudn': did you mean 'cudnn'"):
        run_stack("cudn")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: '.[tpu]'")
def test_the_tpu_kernel_compiles_in_a_train_step():
    from tiny_recipe import config

    from vlrep_jax import plan

    made = plan.plan(config(**{"model.attention": "flash"}), plan.find("v5e:2x2"))
    assert made.fits
