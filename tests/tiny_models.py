"""Models small enough to test by the dozen, with weights drawn by NumPy.

Compiling is all that such tests cost, so a model is compiled once for all that apply it.
"""

from functools import cache

import jax
import numpy as np

from vlrep_jax import models
from vlrep_jax.models import ENCODERS

IMAGE = {"image_size": 8, "patch_size": 4}
TEXT = {"vocab_size": 20, "context_length": 6}
SIZE = {"width": 8, "depth": 2, "heads": 2}
EMBED_DIM = 6
END = 19  # the end-of-text id is the largest
RESNET = {"image_size": 32, "width": 4, "depth": (1, 1, 1, 1), "heads": 2}
TOWERS = {
    "resnet": {**RESNET, "embed_dim": EMBED_DIM},
    "vit": {**IMAGE, **SIZE, "embed_dim": EMBED_DIM},
    "text_transformer": {**TEXT, **SIZE, "embed_dim": EMBED_DIM},
    "video": {**SIZE, "frames": 3, "embed_dim": EMBED_DIM},
}
FRAME = {**IMAGE, **SIZE}
PAIR = {
    "image": {"name": "vit", **TOWERS["vit"]},
    "text": {"name": "text_transformer", **TOWERS["text_transformer"]},
}
CAPTIONS = {
    "image": PAIR["image"] | {"pool": "queries", "queries": 4, "pool_heads": 2},
    "text": PAIR["text"] | {"pool": "cls"},
    "decoder": {"name": "caption_decoder", "vocab_size": 20, **SIZE},
}
DRAWS = PAIR | {
    "generator": {"name": "conv_generator", "image_size": 8, "widths": (8, 4), "noise_dim": 3},
    "discriminator": {"name": "conv_discriminator", "image_size": 8, "widths": (4, 8)},
}
FUSED = PAIR | {"fusion": {"name": "cross_encoder", **SIZE}}
TINY = {
    "coca": CAPTIONS,
    "dual_encoder": PAIR,
    "fusion_encoder": FUSED,
    "vild": PAIR,
    "shared_encoder": {**IMAGE, **TEXT, **SIZE, "embed_dim": EMBED_DIM},
    "text_to_image": DRAWS,
}

IMAGES = np.float32(np.random.default_rng(0).normal(size=(3, 8, 8, 3)))
TOKENS = np.array([[3, 4, END, 0, 0, 0], [1, END, 0, 0, 0, 0], [7, 6, 5, 4, 3, END]], np.int32)
LARGER = np.float32(np.random.default_rng(1).normal(size=(3, 32, 32, 3)))
CLIPS = np.float32(np.random.default_rng(2).normal(size=(3, 3, 8, 8, 3)))
INPUTS = {"resnet": LARGER, "vit": IMAGES, "text_transformer": TOKENS, "video": CLIPS}


def tower(name, **changed):
    frame = {"frame": ENCODERS["vit"](**FRAME)} if name == "video" else {}
    return ENCODERS[name](**(TOWERS[name] | frame | changed))


def drawn(module, *args, seed=0):
    """Parameters of a module as NumPy draws them; every leaf matters, biases and norms too."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args)["params"])
    return jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.3, leaf.shape)), shapes)


def apply(module, params, *args):
    """Applies a module, or a function of variables and arguments."""
    return jax.jit(getattr(module, "apply", module))({"params": params}, *args)


@cache
def create(name, dtype="float32", **changed):
    return models.create(name, **TINY[name], towers={"dtype": dtype, **changed})


@cache
def params_of(name):
    return drawn(create(name), IMAGES, TOKENS)


@cache
def compiled(model, train=False):
    """(params, images, tokens, seed of dropout) -> Embeddings."""

    def embed(params, images, tokens, seed=0):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params}, images, tokens, train=train, rngs=rngs)

    return jax.jit(embed)


def embed(name, images=IMAGES, tokens=TOKENS, **changed):
    return compiled(create(name, **changed))(params_of(name), images, tokens)
