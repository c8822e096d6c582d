"""Published architectures by their common names, as sections for `models.create`.

Sizes from the papers' tables and the released configurations; parameter counts and FLOPs are golden
in the tests. Names are open_clip's where it has one: there as here `ViT-B-32` has the exact GELU of
models trained by open_clip, and `ViT-B-32-quickgelu` is what OpenAI's weights need.
"""

from typing import Any

Section = dict[str, Any]


def text_tower(width, embed_dim, activation, *, heads=None, depth=12) -> Section:
    """CLIP's causal text transformer."""
    return {
        "name": "text_transformer",
        "width": width,
        "depth": depth,
        "heads": heads or width // 64,
        "embed_dim": embed_dim,
        "activation": activation,
    }


def clip_vit(
    image_size,
    patch_size,
    width,
    depth,
    embed_dim,
    text_width,
    activation="gelu",
    *,
    heads=None,
    mlp_dim=None,
    text_depth=12,
) -> Section:
    """CLIP with a vision transformer (arXiv:2103.00020, table 20; arXiv:2212.07143, table 18)."""
    image = {
        "name": "vit",
        "image_size": image_size,
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "heads": heads or width // 64,
        "mlp_dim": mlp_dim or 4 * width,
        "embed_dim": embed_dim,
        "activation": activation,
    }
    text = text_tower(text_width, embed_dim, activation, depth=text_depth)
    return {"name": "dual_encoder", "image": image, "text": text}


def clip_resnet(image_size, width, depth, embed_dim, text_width, activation="gelu") -> Section:
    """OpenAI's CLIP with a ResNet (arXiv:2103.00020, table 19)."""
    image = {
        "name": "resnet",
        "image_size": image_size,
        "width": width,
        "depth": depth,
        "heads": 32 * width // 64,
        "embed_dim": embed_dim,
    }
    # The activation is the text tower's alone: a ResNet has ReLU.
    text = text_tower(text_width, embed_dim, activation)
    return {"name": "dual_encoder", "image": image, "text": text}


def clipa(image_size, section: Section) -> Section:
    """CLIPA's towers (arXiv:2305.07017) of a CLIP's sizes, as converted for open_clip.

    A class token that only takes part, no norm before the layers, and a bidirectional text tower
    over BERT's vocabulary.
    """
    image = {"image_size": image_size, "pool": "patches", "pre_norm": False}
    text = {"vocab_size": 32_000, "context_length": 32, "causal": False, "pool": "last"}
    return {
        **section,
        "image": {**section["image"], **image},
        "text": {**section["text"], **text},
    }


SIGLIP_SIZES = {
    "B": {"width": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
    "L": {"width": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096},
    "SO400M": {"width": 1152, "depth": 27, "heads": 16, "mlp_dim": 4304},
    "gopt": {"width": 1536, "depth": 40, "heads": 16, "mlp_dim": 6144},
}


def siglip(size, patch_size, image_size, vocab_size, *, context_length=64, project=True) -> Section:
    """SigLIP (arXiv:2303.15343) and SigLIP 2 at a fixed resolution (arXiv:2502.14786).

    The activation is the original code's: open_clip computes SigLIP's (not SigLIP 2's) text tower
    with the exact GELU, which differs from it by 5e-4 at most.
    """
    shared = {"activation": "gelu_tanh", "ln_eps": 1e-6}
    image = {
        "name": "vit",
        "image_size": image_size,
        "patch_size": patch_size,
        "drop_edge": image_size % patch_size > 0,
        "pool": "map",
        "pre_norm": False,
        "patch_bias": True,
        **SIGLIP_SIZES[size],
        **shared,
    }
    text = {
        "name": "text_transformer",
        "vocab_size": vocab_size,
        "context_length": context_length,
        "causal": False,
        "pool": "last",
        "embed_dim": image["width"] if project else None,
        "projection_bias": project,
        # The giant has the text tower of the size before it.
        **SIGLIP_SIZES["SO400M" if size == "gopt" else size],
        **shared,
    }
    return {
        "name": "dual_encoder",
        "scale_init": 10.0,
        "bias_init": -10.0,
        "image": image,
        "text": text,
    }


def coca(patch_size, width, depth, embed_dim, text_width) -> Section:
    """CoCa (arXiv:2205.01917) in open_clip's form: 256 queries pool the image once for both uses,
    where the paper pools it twice."""
    section = clip_vit(224, patch_size, width, depth, embed_dim, text_width)
    decoder = {
        "name": "caption_decoder",
        "vocab_size": 49_408,
        "width": text_width,
        "depth": 12,
        "heads": text_width // 64,
    }
    return {
        "name": "coca",
        "image": {**section["image"], "pool": "queries", "queries": 256, "pool_heads": 8},
        "text": {**section["text"], "context_length": 76, "pool": "cls"},
        "decoder": decoder,
    }


# Image size, patch size, width, depth, embedding, text width.
_VITS = {
    "ViT-B-32": (224, 32, 768, 12, 512, 512),
    "ViT-B-16": (224, 16, 768, 12, 512, 512),
    "ViT-L-16": (224, 16, 1024, 24, 768, 768),
    "ViT-L-14": (224, 14, 1024, 24, 768, 768),
    "ViT-L-14-336": (336, 14, 1024, 24, 768, 768),
    "ViT-B-32-256": (256, 32, 768, 12, 512, 512),
    "ViT-B-16-plus-240": (240, 16, 896, 12, 640, 640),
    "ViT-H-14": (224, 14, 1280, 32, 1024, 1024),
    "ViT-H-14-378": (378, 14, 1280, 32, 1024, 1024),
    "ViT-g-14": (224, 14, 1408, 40, 1024, 1024),
    "ViT-bigG-14": (224, 14, 1664, 48, 1280, 1280),
}
# What the larger ones have of their own.
_VIT_OPTIONS = {
    "ViT-H-14": {"heads": 16, "text_depth": 24},
    "ViT-H-14-378": {"heads": 16, "text_depth": 24},
    "ViT-g-14": {"heads": 16, "mlp_dim": 6144, "text_depth": 24},
    "ViT-bigG-14": {"heads": 16, "mlp_dim": 8192, "text_depth": 32},
}
_QUICK = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-H-14-378")
_QUICK += ("ViT-bigG-14",)
# Image size, width, depth, embedding, text width.
_RESNETS = {
    "RN50": (224, 64, (3, 4, 6, 3), 1024, 512),
    "RN101": (224, 64, (3, 4, 23, 3), 512, 512),
    "RN50x4": (288, 80, (4, 6, 10, 6), 640, 640),
    "RN50x16": (384, 96, (6, 8, 18, 8), 768, 768),
    "RN50x64": (448, 128, (3, 15, 36, 10), 1024, 1024),
}
# Size, patch size, image size, vocabulary.
_SIGLIP = {
    "ViT-B-16-SigLIP": ("B", 16, 224, 32_000),
    "ViT-B-16-SigLIP-256": ("B", 16, 256, 32_000),
    "ViT-B-16-SigLIP-384": ("B", 16, 384, 32_000),
    "ViT-B-16-SigLIP-512": ("B", 16, 512, 32_000),
    "ViT-B-16-SigLIP-i18n-256": ("B", 16, 256, 250_000),
    "ViT-L-16-SigLIP-256": ("L", 16, 256, 32_000),
    "ViT-L-16-SigLIP-384": ("L", 16, 384, 32_000),
    "ViT-SO400M-14-SigLIP": ("SO400M", 14, 224, 32_000),
    "ViT-SO400M-14-SigLIP-378": ("SO400M", 14, 378, 32_000),
    "ViT-SO400M-14-SigLIP-384": ("SO400M", 14, 384, 32_000),
    "ViT-SO400M-16-SigLIP-i18n-256": ("SO400M", 16, 256, 250_000),
    "ViT-B-32-SigLIP2-256": ("B", 32, 256, 256_000),
    "ViT-B-16-SigLIP2": ("B", 16, 224, 256_000),
    "ViT-B-16-SigLIP2-256": ("B", 16, 256, 256_000),
    "ViT-B-16-SigLIP2-384": ("B", 16, 384, 256_000),
    "ViT-B-16-SigLIP2-512": ("B", 16, 512, 256_000),
    "ViT-L-16-SigLIP2-256": ("L", 16, 256, 256_000),
    "ViT-L-16-SigLIP2-384": ("L", 16, 384, 256_000),
    "ViT-L-16-SigLIP2-512": ("L", 16, 512, 256_000),
    "ViT-SO400M-14-SigLIP2": ("SO400M", 14, 224, 256_000),
    "ViT-SO400M-14-SigLIP2-378": ("SO400M", 14, 378, 256_000),
    "ViT-SO400M-16-SigLIP2-256": ("SO400M", 16, 256, 256_000),
    "ViT-SO400M-16-SigLIP2-384": ("SO400M", 16, 384, 256_000),
    "ViT-SO400M-16-SigLIP2-512": ("SO400M", 16, 512, 256_000),
    "ViT-gopt-16-SigLIP2-256": ("gopt", 16, 256, 256_000),
    "ViT-gopt-16-SigLIP2-384": ("gopt", 16, 384, 256_000),
}
_SIGLIP_OPTIONS = {
    "ViT-SO400M-14-SigLIP": {"context_length": 16},
    "ViT-SO400M-16-SigLIP-i18n-256": {"project": False},
}


def _vit(name, activation="gelu"):
    return clip_vit(*_VITS[name], activation, **_VIT_OPTIONS.get(name, {}))


PRESETS: dict[str, Section] = {
    **{name: _vit(name) for name in _VITS},
    **{f"{name}-quickgelu": _vit(name, "quick_gelu") for name in _QUICK},
    **{name: clip_resnet(*sizes) for name, sizes in _RESNETS.items()},
    **{f"{name}-quickgelu": clip_resnet(*_RESNETS[name], "quick_gelu") for name in _RESNETS},
    **{f"{name}-CLIPA": clipa(224, _vit(name)) for name in ("ViT-L-14", "ViT-H-14", "ViT-bigG-14")},
    **{
        f"{name}-CLIPA-336": clipa(336, _vit(name))
        for name in ("ViT-L-14", "ViT-H-14", "ViT-bigG-14")
    },
    **{name: siglip(*sizes, **_SIGLIP_OPTIONS.get(name, {})) for name, sizes in _SIGLIP.items()},
    "coca_ViT-B-32": coca(32, 768, 12, 512, 512),
    "coca_ViT-L-14": coca(14, 1024, 24, 768, 768),
    # The articles' readings of CLIP and ViLD, at B/16 size.
    "clip-article": {"name": "shared_encoder", "width": 768, "depth": 12, "heads": 12},
    "vild-article": {**_vit("ViT-B-16"), "name": "vild"},
}

# What a preset's weights were trained on: pixels by (x / 255 - mean) / std, cropped to a square or
# squashed into one, and a tokenizer. 'siglip' is SentencePiece with that model's own vocabulary.
_CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "mode": "crop",
    "interpolation": "bicubic",
    "tokenizer": "clip",
}
_HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "mode": "squash"}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "mode": "squash"}


def _preprocessing(name):
    if "SigLIP" in name:
        tokenizer = "siglip2" if "SigLIP2" in name else "siglip"
        return {**_HALVES, "interpolation": "bicubic", "tokenizer": tokenizer}
    if "CLIPA" in name:
        return {**_IMAGENET, "interpolation": "bilinear", "tokenizer": "bert"}
    # Apple's DFN squashes. Its smaller one shares ViT-H-14-quickgelu with MetaCLIP, which crops.
    return {**_CLIP, "mode": "squash"} if "H-14-378" in name else dict(_CLIP)


PREPROCESSING: dict[str, Section] = {name: _preprocessing(name) for name in PRESETS}
