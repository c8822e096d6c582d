"""Hugging Face's names and configs: `CLIPModel`, and `SiglipModel`, which SigLIP2 has too."""

from collections.abc import Mapping

from vlrep_jax.weights.layout import activation_of, name_of_activation, only, positive
from vlrep_jax.weights.mapping import (
    Entry,
    linear,
    norm,
    packed_heads,
    repeated,
)

# Buffers of older versions' files.
NOT_PARAMETERS = (
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
)
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
}
_LARGEST = 2  # eos_token_id of a CLIP that reads the embedding at the largest id
# What transformers takes where a config.json is silent, which it is about every default.
_SHARED = {"num_hidden_layers": 12, "initializer_range": 0.02, "attention_dropout": 0.0}
_CLIP = _SHARED | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 512}
_SIGLIP = _SHARED | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_DEFAULTS = {
    "clip": {
        "text": _CLIP
        | {
            "vocab_size": 49_408,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_attention_heads": 8,
            "max_position_embeddings": 77,
            "eos_token_id": 49_407,
        },
        "vision": _CLIP
        | {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 32,
        },
    },
    "siglip": {
        "text": _SIGLIP
        | {
            "vocab_size": 32_000,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "max_position_embeddings": 64,
        },
        "vision": _SIGLIP
        | {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 16,
            "vision_use_head": True,
        },
    },
}


def is_layout(keys) -> bool:
    """Whether tensors are named as Hugging Face names them."""
    return "vision_model.embeddings.patch_embedding.weight" in keys


def section(config: Mapping, shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """The config section of the model that a `config.json` describes.

    Raises:
      ValueError: another kind of model, or an option that is not known here.
    """
    kind = config.get("model_type")
    if kind not in _DEFAULTS:
        known = ", ".join(_DEFAULTS)
        raise ValueError(f"config.json is of a model_type {kind!r}; read here are: {known}.")
    # Older configs keep what differs from the defaults in *_config_dict.
    text, vision = (
        _DEFAULTS[kind][side]
        | dict(config.get(f"{side}_config") or {})
        | dict(config.get(f"{side}_config_dict") or {})
        for side in ("text", "vision")
    )
    only(vision, "vision_config", {"num_channels": 3, "vision_use_head": True})
    image_size, patch_size = positive(vision, "image_size"), positive(vision, "patch_size")
    own = {
        "image": {
            "name": "vit",
            "image_size": image_size,
            "patch_size": patch_size,
            "drop_edge": image_size % patch_size > 0,
            **_tower(vision),
        },
        "text": {
            "name": "text_transformer",
            "vocab_size": positive(text, "vocab_size"),
            "context_length": positive(text, "max_position_embeddings"),
            **_tower(text),
        },
    }
    if kind == "clip":
        embed_dim = config.get("projection_dim", 512)
        own["image"] |= {"embed_dim": embed_dim}
        own["text"] |= {"embed_dim": embed_dim, **_pool(text)}
        return {"name": "dual_encoder", **own}
    own["image"] |= {"pool": "map", "pre_norm": False, "patch_bias": True}
    own["text"] |= {
        "causal": False,
        "pool": "last",
        "projection_bias": True,
        "embed_dim": text.get("projection_size", text["hidden_size"]),
    }
    return {"name": "dual_encoder", "scale_init": 10.0, "bias_init": -10.0, **own}


def _tower(config):
    return {
        "width": positive(config, "hidden_size"),
        "depth": positive(config, "num_hidden_layers"),
        "heads": positive(config, "num_attention_heads"),
        "mlp_dim": positive(config, "intermediate_size"),
        "activation": activation_of(config["hidden_act"], ACTIVATIONS, "hidden_act"),
        "ln_eps": config["layer_norm_eps"],
    }


def _pool(text):
    """Where CLIP's text embedding is read: at the first end token.

    _LARGEST stands in configs from before the token was looked up, OpenAI's own among them.
    """
    eos_id = text["eos_token_id"]
    return {"pool": "eot"} if eos_id == _LARGEST else {"pool": "eos", "eos_id": eos_id}


def entries(model) -> list[Entry]:
    """The entries of a CLIP or SigLIP model.

    Raises:
      ValueError: the layout has no place for something in it.
    """
    siglip = _kind(model) == "siglip"
    image, text = model.image, model.text
    vision, words = "vision_model.embeddings", "text_model.embeddings"
    found = [
        Entry("image/patch_embedding/kernel", f"{vision}.patch_embedding.weight", "conv"),
        Entry("image/positional_embedding", f"{vision}.position_embedding.weight"),
        *_layers("image/transformer", "vision_model.encoder.layers", image.depth),
        *norm("image/ln_post", "vision_model.post_layernorm"),
        Entry("text/token_embedding/embedding", f"{words}.token_embedding.weight"),
        Entry("text/positional_embedding", f"{words}.position_embedding.weight"),
        *_layers("text/transformer", "text_model.encoder.layers", text.depth),
        *norm("text/ln_final", "text_model.final_layer_norm"),
    ]
    if siglip:
        head = "vision_model.head"
        found += [
            Entry("image/patch_embedding/bias", f"{vision}.patch_embedding.bias"),
            Entry("image/pool/probe", f"{head}.probe"),
            *packed_heads(
                "image/pool/attn",
                f"{head}.attention.in_proj_weight",
                f"{head}.attention.in_proj_bias",
                ("query", "key", "value"),
            ),
            *linear("image/pool/attn/out", f"{head}.attention.out_proj", form="from_heads"),
            *norm("image/pool/ln", f"{head}.layernorm"),
            *linear("image/pool/mlp/fc1", f"{head}.mlp.fc1"),
            *linear("image/pool/mlp/fc2", f"{head}.mlp.fc2"),
            *linear("text/projection", "text_model.head"),
            Entry("logit_bias", "logit_bias", "flat"),
            Entry("logit_scale", "logit_scale", "flat"),
        ]
        return found
    return [
        *found,
        Entry("image/class_embedding", f"{vision}.class_embedding"),
        *norm("image/ln_pre", "vision_model.pre_layrnorm"),  # its spelling
        *linear("image/projection", "visual_projection", bias=False),
        *linear("text/projection", "text_projection", bias=False),
        Entry("logit_scale", "logit_scale"),
    ]


def _layers(path, key, depth):
    def layer(i):
        ours, their = f"{path}/layers", f"{key}.{i}"
        found = [
            *norm(f"{ours}/ln_1", f"{their}.layer_norm1", i),
            *norm(f"{ours}/ln_2", f"{their}.layer_norm2", i),
            *linear(f"{ours}/mlp/fc1", f"{their}.mlp.fc1", i),
            *linear(f"{ours}/mlp/fc2", f"{their}.mlp.fc2", i),
            *linear(f"{ours}/attn/out", f"{their}.self_attn.out_proj", i, form="from_heads"),
        ]
        for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
            found += linear(f"{ours}/attn/{name}", f"{their}.self_attn.{short}_proj", i)
        return found

    return repeated(depth, layer)


def config(model) -> dict:
    """The `config.json` of a model; errors as `entries`."""
    kind = _kind(model)
    image, text = model.image, model.text
    vision_config = _tower_config(image) | {
        "model_type": f"{kind}_vision_model",
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        "num_channels": 3,
    }
    text_config = _tower_config(text) | {
        "model_type": f"{kind}_text_model",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
    }
    whole = {"model_type": kind, "torch_dtype": "float32", "initializer_factor": 1.0}
    if kind == "siglip":
        text_config |= {"projection_size": text.embed_dim, "pad_token_id": 1}
        text_config |= {"bos_token_id": None, "eos_token_id": 1}
        whole["architectures"] = ["SiglipModel"]
    else:
        at_end = text.pool == "eos"
        for part in (vision_config, text_config, whole):
            part["projection_dim"] = image.embed_dim
        text_config |= {
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.eos_id if at_end else _LARGEST,
            "pad_token_id": text.eos_id if at_end else text.vocab_size - 1,
        }
        whole["architectures"] = ["CLIPModel"]
    return whole | {"text_config": text_config, "vision_config": vision_config}


def _tower_config(tower):
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_dim or 4 * tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "hidden_act": name_of_activation(tower.activation, ACTIVATIONS),
        "layer_norm_eps": tower.ln_eps,
        "attention_dropout": 0.0,
    }


# Attributes that decide which of the two classes a model is, if either.
_CLASSES = {
    "clip": {
        "image": {"pool": "cls", "pre_norm": True, "patch_bias": False, "stem": "patch"},
        "text": {"causal": True, "projection_bias": False},
    },
    "siglip": {
        "image": {"pool": "map", "pre_norm": False, "patch_bias": True, "stem": "patch"}
        | {"embed_dim": None},
        "text": {"causal": False, "pool": "last", "projection_bias": True},
    },
}


def _kind(model):
    """'clip' or 'siglip'.

    Raises:
      ValueError: neither; what stands in the way is named.
    """
    kind = "siglip" if getattr(model, "bias_init", None) is not None else "clip"
    against = []
    for side, wanted in _CLASSES[kind].items():
        tower = getattr(model, side, None)
        against += [
            f"{side}.{name}={getattr(tower, name, None)!r} (there {value!r})"
            for name, value in wanted.items()
            if getattr(tower, name, None) != value
        ]
    if not against and kind == "clip":
        if model.text.pool not in ("eot", "eos"):
            against.append(f"text.pool={model.text.pool!r}")
        if None in (model.image.embed_dim, model.text.embed_dim):
            against.append("a tower without a projection")
    if not against and kind == "siglip" and model.text.embed_dim is None:
        against.append("a text tower without a projection")
    if against:
        its = "SiglipModel" if kind == "siglip" else "CLIPModel"
        raise ValueError(f"Hugging Face's {its} cannot express {'; '.join(against)}.")
    return kind
