"""Presets beside open_clip's own configurations: as many parameters in the same parts."""

import jax
import jax.numpy as jnp
import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP

from vlrep_jax import models
from vlrep_jax.models import PRESETS
from vlrep_jax.optim import parameter_count

OURS_ALONE = {"clip-article", "vild-article"}


def theirs(name):
    """Their model without memory for its parameters."""
    config = open_clip.get_model_config(name)
    if "multimodal_cfg" in config:
        kind = CoCa
    else:
        kind = CustomTextCLIP if config.get("custom_text") else CLIP
    config.pop("custom_text", None)
    with torch.device("meta"):
        return kind(**config)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - OURS_ALONE))
def test_a_preset_has_as_many_parameters_as_theirs_of_that_name(name):
    their_model, model = theirs(name), models.create(name)
    size, length = models.input_sizes(model)
    example = jnp.zeros((1, size, size, 3)), jnp.zeros((1, length), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), *example)["params"])
    assert parameter_count(params) == count(their_model)
    assert parameter_count(params["image"]) == count(their_model.visual)
    if hasattr(their_model, "text"):
        assert parameter_count(params["text"]) == count(their_model.text)


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - OURS_ALONE))
def test_a_preset_has_their_activation_and_their_sizes_of_inputs(name):
    config, model = open_clip.get_model_config(name), models.create(name)
    sizes = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    assert models.input_sizes(model) == sizes
    assert models.vocab_size(model) == config["text_cfg"]["vocab_size"]
    assert (model.text.activation == "quick_gelu") == config.get("quick_gelu", False)
