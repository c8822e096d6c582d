"""Linen encoders and the tables that name them; `create` builds a model from a name.

Modules here know nothing of devices, meshes or losses.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from vlrep_jax.build import build, near
from vlrep_jax.models.batch_norm import RUNNING, BatchNorm
from vlrep_jax.models.coca import CaptionDecoder, Captioned, CoCa
from vlrep_jax.models.dual_encoder import DualEncoder, Embeddings, ViLD
from vlrep_jax.models.fusion import CrossEncoder, Fused, FusionEncoder, TextTokens
from vlrep_jax.models.generation import generate
from vlrep_jax.models.presets import PREPROCESSING, PRESETS
from vlrep_jax.models.resnet import ResNet
from vlrep_jax.models.shared_encoder import SharedEncoder
from vlrep_jax.models.text import TextTransformer
from vlrep_jax.models.text_to_image import ConvDiscriminator, ConvGenerator, TextToImage
from vlrep_jax.models.transformer import Transformer
from vlrep_jax.models.video import Video
from vlrep_jax.models.vit import ViT

__all__ = [
    "DECODERS",
    "DISCRIMINATORS",
    "ENCODERS",
    "FUSIONS",
    "IMAGE_GENERATORS",
    "MODELS",
    "PREPROCESSING",
    "PRESETS",
    "RUNNING",
    "BatchNorm",
    "CaptionDecoder",
    "Captioned",
    "CoCa",
    "ConvDiscriminator",
    "ConvGenerator",
    "CrossEncoder",
    "DualEncoder",
    "Embeddings",
    "Fused",
    "FusionEncoder",
    "ResNet",
    "SharedEncoder",
    "TextToImage",
    "TextTokens",
    "TextTransformer",
    "Transformer",
    "ViLD",
    "ViT",
    "Video",
    "create",
    "frames",
    "generate",
    "image_shape",
    "input_sizes",
    "preprocessing",
    "synchronized",
    "trains_batch_norm",
    "vocab_size",
]

ENCODERS: dict[str, Callable] = {
    "vit": ViT,
    "resnet": ResNet,
    "text_transformer": TextTransformer,
    "video": Video,
}
DECODERS: dict[str, Callable] = {"caption_decoder": CaptionDecoder}
IMAGE_GENERATORS: dict[str, Callable] = {"conv_generator": ConvGenerator}
DISCRIMINATORS: dict[str, Callable] = {"conv_discriminator": ConvDiscriminator}
FUSIONS: dict[str, Callable] = {"cross_encoder": CrossEncoder}
MODELS: dict[str, Callable] = {
    "coca": CoCa,
    "dual_encoder": DualEncoder,
    "fusion_encoder": FusionEncoder,
    "shared_encoder": SharedEncoder,
    "text_to_image": TextToImage,
    "vild": ViLD,
}
_PARTS = (("image", ENCODERS), ("text", ENCODERS), ("decoder", DECODERS), ("fusion", FUSIONS))
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def create(name: str, **overrides: Any) -> nn.Module:
    """A model by name, with any of its options changed.

    >>> model = create("ViT-B-32", image={"image_size": 256}, towers={"dtype": "bfloat16"})

    Args:
      name: a preset ('ViT-B-32') or a model class of the table MODELS ('dual_encoder').
      overrides: options of the model; those of a tower as a mapping (`image={...}`), merged
        into the preset's. `towers={...}` gives the same options to all towers, and
        `attention=...` is short for the one among them that depends on the machine.

    Returns:
      A linen module. After `model.init(key, images, tokens)`, `model.apply(variables, images,
      tokens)` gives `Embeddings`, and `method='encode_image'` or `'encode_text'` one side.

    Raises:
      ValueError: an unknown name or option; the message lists the near ones.
    """
    if name not in PRESETS and name not in MODELS:
        raise ValueError(f"Unknown model {name!r}: {near(name, [*PRESETS, *MODELS])}.")
    section = _merge(PRESETS.get(name, {"name": name}), overrides)
    towers = section.pop("towers", {})
    if "image" in section and "attention" in section:
        towers = {"attention": section.pop("attention"), **towers}
    if towers and any(isinstance(section.get(side), nn.Module) for side in ("image", "text")):
        raise ValueError("towers={...} changes towers given as mappings, not as modules.")
    for side, table in _PARTS:
        if isinstance(section.get(side), Mapping):
            section[side] = _tower(section[side], towers, table, side)
    for part, table in (("generator", IMAGE_GENERATORS), ("discriminator", DISCRIMINATORS)):
        if isinstance(section.get(part), Mapping):
            section[part] = build(table, _with_dtype(section[part]), part)
    if "image" not in section:  # one transformer for both modalities
        section = _merge(section, towers)
    return build(MODELS, _with_dtype(section), "model")


def input_sizes(model: nn.Module) -> tuple[int, int]:
    """(image_size, context_length) that a model made by `create` takes."""
    image, text = getattr(model, "image", model), getattr(model, "text", model)
    return image.image_size, text.context_length


def frames(model: nn.Module) -> int:
    """How many frames a clip has that a model made by `create` takes; 0 where it takes pictures."""
    return getattr(getattr(model, "image", None), "frames", 0)


def image_shape(model: nn.Module) -> tuple[int, ...]:
    """Shape of one picture, (s, s, 3), or of one clip, (t, s, s, 3), that a model takes."""
    size, clip = input_sizes(model)[0], frames(model)
    return (clip, size, size, 3) if clip else (size, size, 3)


def vocab_size(model: nn.Module) -> int:
    """Rows of the token embedding of a model made by `create`."""
    return getattr(model, "text", model).vocab_size


def preprocessing(name: str) -> dict[str, Any]:
    """What a preset's weights were trained on, as plain values.

    Returns:
      mean, std: of pixels in [0, 1]. mode: 'crop' to a square, or 'squash' into one.
      interpolation: 'bicubic' or 'bilinear'. tokenizer: 'clip', 'siglip', 'siglip2' or 'bert'.

    Raises:
      ValueError: an unknown preset; the message lists the near ones.
    """
    if name not in PREPROCESSING:
        raise ValueError(f"Unknown preset {name!r}: {near(name, PREPROCESSING)}.")
    return dict(PREPROCESSING[name])


def trains_batch_norm(model: nn.Module) -> bool:
    """Whether training normalises with statistics of the batch: rows then depend on each other."""
    return getattr(getattr(model, "image", None), "batch_norm", "frozen") != "frozen"


def synchronized(model: nn.Module, sum_shards: Callable) -> nn.Module:
    """The model with the batch norms of a batch split over shards: those of the whole batch.

    Args:
      model: made by `create`.
      sum_shards: array -> its sum over all shards, where the model is applied in training.
    """
    if not trains_batch_norm(model):
        return model
    return model.clone(image=model.image.clone(sum_shards=sum_shards))


def _tower(section, shared, table, side):
    """A tower of a section and of options that all towers share."""
    section = _merge(section, shared)
    if isinstance(section.get("frame"), Mapping):
        section["frame"] = _tower(section["frame"], shared, ENCODERS, f"{side}'s frame")
    return build(table, _with_dtype(section), f"{side} tower")


def _merge(base, changes):
    """A copy of a nested mapping with another laid over it."""
    merged = dict(base.items())
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        # Another tower of its own name replaces the preset's: its options would not fit.
        same = both and value.get("name", merged[key].get("name")) == merged[key].get("name")
        merged[key] = _merge(merged[key], value) if same else value
    return merged


def _with_dtype(section):
    """The section with its dtype, a word in configs, as a dtype."""
    if not isinstance(section.get("dtype"), str):
        return section
    if section["dtype"] not in DTYPES:
        raise ValueError(f"Unknown dtype {section['dtype']!r}: {near(section['dtype'], DTYPES)}.")
    return {**section, "dtype": DTYPES[section["dtype"]]}
