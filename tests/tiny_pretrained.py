"""Small models with random parameters, as `weights.load` gives them."""

import jax
import numpy as np

from vlrep_jax import models, weights
from vlrep_jax.data.preprocess import Preprocess

TINY = {"width": 64, "depth": 2, "heads": 1}
CLIP = {
    "name": "dual_encoder",
    "image": {"name": "vit", "image_size": 32, "patch_size": 8, "embed_dim": 16, **TINY},
    "text": {"name": "text_transformer", "embed_dim": 16, **TINY},
}
QUICK = CLIP | {side: {**CLIP[side], "activation": "quick_gelu"} for side in ("image", "text")}
SHARED = {**TINY, "heads": 2, "mlp_dim": 80, "activation": "gelu_tanh", "ln_eps": 1e-6}
SIGLIP = {
    "name": "dual_encoder",
    "bias_init": -10.0,
    "image": {
        **{"name": "vit", "image_size": 32, "patch_size": 8, "pool": "map", "pre_norm": False},
        **{"patch_bias": True, **SHARED},
    },
    "text": {
        **{"name": "text_transformer", "vocab_size": 90, "context_length": 6, "causal": False},
        **{"pool": "last", "embed_dim": 64, "projection_bias": True, **SHARED},
    },
}
RESNET = {
    "name": "dual_encoder",
    "image": {"name": "resnet", "image_size": 32, "width": 4, "depth": (1, 2, 1, 1)}
    | {"heads": 2, "embed_dim": 16},
    "text": QUICK["text"],
}
HALVES = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def pretrained(section, tokenizer=None):
    """A model with random parameters."""
    model = models.create(**section)
    size, length = models.input_sizes(model)
    images = np.zeros((1, size, size, 3), np.float32)
    tokens = np.ones((1, length), np.int32)
    drawn = jax.jit(model.init)(jax.random.key(0), images, tokens)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), drawn
    )
    siglip = section.get("bias_init") is not None
    preprocess = Preprocess(size, "squash", **HALVES) if siglip else Preprocess(size)
    return weights.Pretrained(model, params, preprocess, tokenizer, {"model": section})
