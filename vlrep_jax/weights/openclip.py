"""OpenCLIP's configs (`open_clip_config.json`) and names: its CLIP, CustomTextCLIP and CoCa."""

import math
from collections.abc import Mapping

from vlrep_jax.weights import coca, openai, timm
from vlrep_jax.weights.layout import only, positive
from vlrep_jax.weights.mapping import Entry

# Options whose other values change the architecture into one that is not built here.
_PLAIN = {
    "ls_init_value": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
# How its tokenizers clean texts, repairing first -> options of `tokenizer_from_directory`.
_CLEANING = {
    "whitespace": {"clean": "repair"},
    "lower": {"clean": "repair", "lower_case": True},
    "canonicalize": {"clean": "canonicalize"},
}


def is_layout(keys) -> bool:
    """Whether tensors are named as OpenCLIP names them where OpenAI does not."""
    return "text.token_embedding.weight" in keys or any(
        key.startswith("visual.trunk.") for key in keys
    )


def section(config: Mapping, shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """The config section of the model that an `open_clip_config.json` describes.

    Raises:
      ValueError: an option that is not known here.
    """
    config = config.get("model_cfg", config)
    vision, text = (config.get(f"{side}_cfg") for side in ("vision", "text"))
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise ValueError("the config has no vision_cfg and text_cfg.")
    embed_dim, quick = positive(config, "embed_dim"), bool(config.get("quick_gelu"))
    found = {
        "name": "dual_encoder",
        "image": _image_section(vision, embed_dim, quick),
        "text": _text_section(text, embed_dim, quick),
    }
    if config.get("multimodal_cfg"):
        found["name"] = "coca"
        found["decoder"] = coca.decoder_section(config["multimodal_cfg"], found["text"])
    if config.get("init_logit_scale") is not None:
        found["scale_init"] = math.exp(config["init_logit_scale"])
    if "logit_bias" in shapes or config.get("init_logit_bias") is not None:
        found["bias_init"] = float(config.get("init_logit_bias") or 0.0)
    return found


def _check_plain(tower, label):
    """Raises ValueError where layers are of another kind than those that are built here."""
    only(
        tower,
        label,
        _PLAIN | ({} if tower.get("block_type") == "default" else {"block_type": None}),
    )


def _image_section(vision, embed_dim, quick_gelu):
    _check_plain(vision, "vision_cfg")
    image_size = positive({"image_size": 224} | vision, "image_size")
    if vision.get("timm_model_name"):
        only(vision, "vision_cfg", {"timm_pool": "map", "timm_proj": "none"})
        return timm.section(vision["timm_model_name"])
    layers = vision.get("layers", 12)
    if isinstance(layers, list):
        return {
            "name": "resnet",
            "image_size": image_size,
            "width": vision.get("width", 64),
            "depth": tuple(layers),
            "heads": vision.get("width", 64) * 32 // vision.get("head_width", 64),
            "embed_dim": embed_dim,
        }
    width = positive({"width": 768} | vision, "width")
    patch_size = positive({"patch_size": 16} | vision, "patch_size")
    patch_keep = 1 - (vision.get("patch_dropout") or 0.0)
    return {
        "name": "vit",
        "image_size": image_size,
        "patch_size": patch_size,
        "drop_edge": image_size % patch_size > 0,
        "width": width,
        "depth": layers,
        "heads": width // vision.get("head_width", 64),
        "mlp_dim": int(width * vision.get("mlp_ratio", 4.0)),
        "embed_dim": embed_dim,
        "pre_norm": not vision.get("no_ln_pre", False),
        **({"patch_keep": patch_keep} if patch_keep < 1 else {}),
        **_numerics(vision, quick_gelu),
        **_image_pool(vision),
    }


def _image_pool(vision):
    only(vision, "vision_cfg", {"pos_embed_type": "learnable"})
    pool, after = vision.get("pool_type", "tok"), bool(vision.get("final_ln_after_pool", False))
    pooler = vision.get("attentional_pool", False)
    if pooler:
        # Other words than true ask for two poolers, 'parallel' or 'cascade'.
        wanted = {"attentional_pool": True, "final_ln_after_pool": False, "pool_type": "tok"}
        only(vision, "vision_cfg", wanted)
        return {
            "pool": "queries",
            "queries": vision.get("attn_pooler_queries", 256),
            "pool_heads": vision.get("attn_pooler_heads", 8),
        }
    if pool == "avg" and after:
        return {"pool": "patches"}
    if pool != "tok":
        raise ValueError(
            f"vision_cfg has pool_type={pool!r} with final_ln_after_pool={after}; read here are "
            "'tok', and 'avg' with the norm after it."
        )
    return {"pool": "cls"}  # one token: normalised before or after it is taken is the same


def _text_section(text, embed_dim, quick_gelu):
    _check_plain(text, "text_cfg")
    if text.get("hf_model_name"):
        raise ValueError(
            f"text_cfg has hf_model_name={text['hf_model_name']!r}; text towers of transformers "
            "are not read."
        )
    if text.get("proj_type", "linear") not in ("linear", "none"):
        raise ValueError(f"text_cfg has proj_type={text['proj_type']!r}; known: linear, none.")
    projects = text.get("proj_type", "linear") == "linear"
    width = positive({"width": 512} | text, "width")
    return {
        "name": "text_transformer",
        "vocab_size": positive({"vocab_size": 49_408} | text, "vocab_size"),
        "context_length": positive({"context_length": 77} | text, "context_length"),
        "width": width,
        "depth": positive({"layers": 12} | text, "layers"),
        "heads": positive({"heads": 8} | text, "heads"),
        "mlp_dim": int(width * text.get("mlp_ratio", 4.0)),
        "embed_dim": embed_dim if projects else None,
        "projection_bias": projects and bool(text.get("proj_bias", False)),
        "causal": not text.get("no_causal_mask", False),
        **_text_pool(text),
        **_numerics(text, quick_gelu),
    }


def _text_pool(text):
    pool = text.get("pool_type", "argmax")
    if text.get("embed_cls"):
        return {"pool": "cls", "pad_id": text.get("pad_id", 0)}
    if pool == "eos":
        return {"pool": "eos", "eos_id": text.get("eos_id", 2)}
    names = {"argmax": "eot", "last": "last"}
    if pool not in names:
        raise ValueError(f"text_cfg has pool_type={pool!r}; known: eos, {', '.join(names)}.")
    return {"pool": names[pool]}


def _numerics(tower, quick_gelu):
    act, norms = tower.get("act_kwargs") or {}, tower.get("norm_kwargs") or {}
    if act not in ({}, {"approximate": "tanh"}, {"approximate": "none"}) or set(norms) - {"eps"}:
        raise ValueError(f"the config has act_kwargs={act} and norm_kwargs={norms}.")
    tanh = act.get("approximate") == "tanh"
    gelu = "gelu_tanh" if tanh else "gelu"
    return {
        "activation": "quick_gelu" if quick_gelu else gelu,
        "ln_eps": norms.get("eps", 1e-5),
    }


def tokenizer_options(config: Mapping) -> dict | None:
    """Options of `tokenizer_from_directory` for the tokenizer that a config names.

    Returns:
      None where it names none: OpenCLIP then takes CLIP's own, whatever files lie beside it.

    Raises:
      ValueError: one that is not read here.
    """
    text = config.get("model_cfg", config).get("text_cfg", {})
    if not text.get("hf_tokenizer_name"):
        return None
    only(text, "text_cfg", {"tokenizer_mode": None})
    given = dict(text.get("tokenizer_kwargs") or {})
    clean, strips = given.pop("clean", "whitespace"), given.pop("strip_sep_token", False)
    if clean not in _CLEANING or given:
        raise ValueError(f"text_cfg has tokenizer_kwargs={text['tokenizer_kwargs']}, not known.")
    return {**_CLEANING[clean], "keep_sep": not strips}


def entries(model, keys=None) -> list[Entry]:
    """The entries of a model.

    Args:
      model: a dual encoder.
      keys: of the file that is read: it decides whether the text tower's names have a prefix.

    Raises:
      ValueError: the layout has no place for something in it.
    """
    check(model)
    custom = is_layout(keys) if keys is not None else custom_text(model)
    decoder = getattr(model, "decoder", None)
    return [
        *(timm.entries(model.image) if _timm(model) else openai.image_entries(model.image)),
        *openai.text_entries(model.text, "text." if custom else ""),
        *(coca.decoder_entries(decoder) if decoder is not None else []),
        Entry("logit_scale", "logit_scale"),
    ] + [Entry("logit_bias", "logit_bias")] * (model.bias_init is not None)


def config(model, tokenizer: Mapping | None = None) -> dict:
    """The `model_cfg` of an `open_clip_config.json`; errors as `entries`.

    Args:
      model: a dual encoder.
      tokenizer: `tokenizer_kwargs` of the one whose files lie beside it; None for CLIP's own.
    """
    check(model)
    image, text = model.image, model.text
    if _timm(model):
        vision = {
            "image_size": image.image_size,
            "timm_model_name": timm.name_of(image),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        }
    else:
        vision = _vision_config(image)
    found = {
        "embed_dim": image.embed_dim or image.width,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": vision,
        "text_cfg": _text_config(text),
    }
    if tokenizer is not None:
        # Any name has OpenCLIP open the files of the directory.
        found["text_cfg"] |= {"hf_tokenizer_name": "local", "tokenizer_kwargs": dict(tokenizer)}
    if model.bias_init is not None:
        found["init_logit_bias"] = model.bias_init
    if custom_text(model):
        found["custom_text"] = True
    if getattr(model, "decoder", None) is not None:
        found["multimodal_cfg"] = coca.decoder_config(model)
        for side in ("vision_cfg", "text_cfg"):
            found[side]["output_tokens"] = True
    return found


def _vision_config(image):
    if not hasattr(image, "patch_size"):
        return {
            "image_size": image.image_size,
            "layers": list(image.depth),
            "width": image.width,
            "head_width": image.width * 32 // image.heads,
            "patch_size": None,
        }
    return {
        "image_size": image.image_size,
        "layers": image.depth,
        "width": image.width,
        "head_width": image.width // image.heads,
        "patch_size": image.patch_size,
        "no_ln_pre": not image.pre_norm,
        **_pool_config(image),
        **_ratio(image),
        **_numerics_config(image),
    }


def _pool_config(image):
    if image.pool == "queries":
        return {
            "attentional_pool": True,
            "attn_pooler_queries": image.queries,
            "attn_pooler_heads": image.pool_heads,
        }
    return {"pool_type": "avg", "final_ln_after_pool": True} if image.pool == "patches" else {}


def _text_config(text):
    pools = {"eot": "argmax", "cls": "argmax"}  # a class token goes before the pool's name
    found = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.depth,
        "pool_type": pools.get(text.pool, text.pool),
        "no_causal_mask": not text.causal,
        "proj_bias": text.projection_bias,
        **_ratio(text),
        **_numerics_config(text),
    }
    if text.embed_dim is None:
        found["proj_type"] = "none"
    if text.pool == "eos":
        found["eos_id"] = text.eos_id
    if text.pool == "cls":
        found |= {"embed_cls": True, "pad_id": text.pad_id}
    return found


def _ratio(tower):
    """The MLP's width as a ratio that gives it again once OpenCLIP has multiplied and cut."""
    hidden = tower.mlp_dim or 4 * tower.width
    ratio = hidden / tower.width
    if int(tower.width * ratio) != hidden:
        ratio = math.nextafter(ratio, math.inf)
    return {"mlp_ratio": ratio}


def _numerics_config(tower):
    found = {}
    if tower.activation == "gelu_tanh":
        found["act_kwargs"] = {"approximate": "tanh"}
    if tower.ln_eps != 1e-5:
        found["norm_kwargs"] = {"eps": tower.ln_eps}
    return found


def custom_text(model) -> bool:
    """Whether OpenCLIP builds a model with the text tower as a module of its own, `text.`."""
    text = model.text
    own = text.pool == "cls" or text.projection_bias or text.embed_dim is None
    return _timm(model) or own


def _timm(model):
    return getattr(model.image, "pool", None) == "map"


def check(model) -> None:
    """Raises ValueError where OpenCLIP's configs cannot express a model."""
    image, text = model.image, model.text
    against = []
    vit = hasattr(image, "patch_size")
    if vit and image.stem != "patch":
        against.append(f"image.stem={image.stem!r}")
    if _timm(model):
        timm.name_of(image)
        if image.embed_dim is not None or image.ln_eps != 1e-6:
            against.append("a SigLIP tower with a projection or another ln_eps than 1e-6")
    elif vit and image.patch_bias:
        against.append("image.patch_bias=True")
    elif vit and image.pool not in ("cls", "patches", "queries"):
        against.append(f"image.pool={image.pool!r}")
    elif vit and (image.activation == "quick_gelu") != (text.activation == "quick_gelu"):
        against.append(f"activations {image.activation!r} and {text.activation!r}")
    if image.embed_dim is None and not _timm(model):
        against.append("an image tower without a projection")
    if getattr(model, "decoder", None) is not None and text.pool != "cls":
        against.append(f"text.pool={text.pool!r} with a decoder")
    if against:
        raise ValueError(f"OpenCLIP cannot express {'; '.join(against)}.")
