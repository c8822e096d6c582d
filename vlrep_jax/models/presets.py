"""Published architectures by their common names, as sections for `models.create`.

Sizes from the papers' tables and the released configurations; parameter counts are golden in the
tests. Names follow open_clip where it has one.
"""

from typing import Any


def clip_vit(image_size, patch_size, width, depth, embed_dim, text_width, activation="gelu"):
    """OpenAI's CLIP with a vision transformer (arXiv:2103.00020, table 20)."""
    return {
        "name": "dual_encoder",
        "image": {
            "name": "vit",
            "image_size": image_size,
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "heads": width // 64,
            "embed_dim": embed_dim,
            "activation": activation,
        },
        "text": {
            "name": "text_transformer",
            "width": text_width,
            "heads": text_width // 64,
            "embed_dim": embed_dim,
            "activation": activation,
        },
    }


def siglip_vit_b(patch_size, image_size):
    """SigLIP with B-sized towers (arXiv:2303.15343)."""
    shared = {"width": 768, "depth": 12, "heads": 12, "activation": "gelu_tanh", "ln_eps": 1e-6}
    return {
        "name": "dual_encoder",
        "scale_init": 10.0,
        "bias_init": -10.0,
        "image": {
            "name": "vit",
            "image_size": image_size,
            "patch_size": patch_size,
            "pool": "map",
            "pre_norm": False,
            "patch_bias": True,
            **shared,
        },
        "text": {
            "name": "text_transformer",
            "vocab_size": 32_000,
            "context_length": 64,
            "causal": False,
            "pool": "last",
            "embed_dim": 768,
            "projection_bias": True,
            **shared,
        },
    }


PRESETS: dict[str, dict[str, Any]] = {
    "ViT-B-32": clip_vit(224, 32, 768, 12, 512, 512),
    "ViT-B-16": clip_vit(224, 16, 768, 12, 512, 512),
    "ViT-L-16": clip_vit(224, 16, 1024, 24, 768, 768),
    "ViT-L-14": clip_vit(224, 14, 1024, 24, 768, 768),
    "ViT-L-14-336": clip_vit(336, 14, 1024, 24, 768, 768),
    "ViT-B-32-quickgelu": clip_vit(224, 32, 768, 12, 512, 512, "quick_gelu"),
    "ViT-B-16-quickgelu": clip_vit(224, 16, 768, 12, 512, 512, "quick_gelu"),
    "ViT-L-14-quickgelu": clip_vit(224, 14, 1024, 24, 768, 768, "quick_gelu"),
    "ViT-L-14-336-quickgelu": clip_vit(336, 14, 1024, 24, 768, 768, "quick_gelu"),
    "ViT-B-16-SigLIP": siglip_vit_b(16, 224),
    # The articles' readings of CLIP and ViLD, at B/16 size.
    "clip-article": {"name": "shared_encoder", "width": 768, "depth": 12, "heads": 12},
    "vild-article": {**clip_vit(224, 16, 768, 12, 512, 512), "name": "vild"},
}
