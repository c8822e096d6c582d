"""The originals' models with random weights, small ones and whole ones, saved as they save them."""

import json
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

CONFIGS = Path(open_clip.__file__).parent / "model_configs"
TEXT = {"context_length": 12, "vocab_size": 200, "width": 64, "heads": 2, "layers": 2}
VIT = {"layers": 2, "width": 80, "head_width": 20, "image_size": 32, "patch_size": 8}
# OpenCLIP's config -> what is smaller about it.
OPEN_CLIP = {
    "ViT-B-32": {"vision_cfg": VIT},
    "ViT-B-32-quickgelu": {"vision_cfg": VIT},
    "ViT-g-14": {"vision_cfg": VIT | {"mlp_ratio": 4.3637}},
    "ViT-bigG-14-CLIPA": {"vision_cfg": VIT},
    # What no published model has: pixels that fill no patch, a class token of the text without a
    # decoder; one pool of queries, texts read at an end token of their own.
    "ViT-B-16": {
        "vision_cfg": VIT | {"image_size": 37, "block_type": "default"},
        "text_cfg": {"embed_cls": True, "pad_id": 3},
        "custom_text": True,
    },
    "ViT-L-14": {
        "vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_queries": 3},
        "text_cfg": {"pool_type": "eos", "eos_id": 150},
    },
    "RN50": {"vision_cfg": {"layers": [1, 2, 1, 1], "width": 16, "image_size": 64}},
    "RN101-quickgelu": {"vision_cfg": {"layers": [1, 1, 3, 1], "width": 24, "image_size": 96}},
    "coca_ViT-B-32": {"vision_cfg": VIT | {"attn_pooler_heads": 4}, "embed_dim": 64},
    "coca_ViT-L-14": {
        "vision_cfg": VIT
        | {"width": 64, "head_width": 16, "attn_pooler_heads": 2, "attn_pooler_queries": 7},
        "embed_dim": 64,
    },
    "ViT-B-16-SigLIP": {"embed_dim": 768},
    "ViT-B-32-SigLIP2-256": {"embed_dim": 768},
}
HUGGING_FACE = {
    "clip": (CLIPConfig, CLIPModel, {}),
    "clip, another end": (CLIPConfig, CLIPModel, {"eos_token_id": 117, "hidden_act": "gelu"}),
    "siglip": (SiglipConfig, SiglipModel, {"projection_size": 96}),
}


def draw(model, seed=0):
    """The same model with random values everywhere, biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    running = [(name, value) for name, value in model.named_buffers() if ".running_" in name]
    for name, value in [*model.named_parameters(), *running]:
        # Norms scale by about one, so that the signal neither fades nor grows.
        scales = name.endswith("running_var") or (value.ndim == 1 and name.endswith(".weight"))
        around = 1.0 if scales else 0.0
        spread = 0.1 if value.ndim < 2 else min(0.1, value[0].numel() ** -0.5)
        with torch.no_grad():
            value.copy_(around + spread * torch.randn(value.shape, generator=generator))
            if around:
                value.abs_()
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    return model.eval()


def save_open_clip(directory, name, model, config):
    directory.mkdir(parents=True)
    config = {"model_cfg": config, "preprocess_cfg": {}}
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, directory / "open_clip_model.safetensors")


def open_clip_model(name, directory, whole=False, **options):
    """A model of OpenCLIP, saved to a directory."""
    config = json.loads((CONFIGS / f"{name}.json").read_text()) | options
    if not whole:
        smaller = {"embed_dim": 32} | OPEN_CLIP[name]
        config["vision_cfg"] |= smaller.pop("vision_cfg", {})
        config["text_cfg"] |= TEXT | smaller.pop("text_cfg", {})
        if "multimodal_cfg" in config:
            config["multimodal_cfg"] |= TEXT
        config |= smaller
    empty = directory.with_name(directory.name + "-empty")
    empty.mkdir()
    (empty / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{empty}", load_weights=False).eval()
    if not whole:  # a deep one with other values than its own would lose its signal
        draw(model)
    save_open_clip(directory, name, model, config)
    return model


def hugging_face_model(name, directory):
    """A model of transformers, saved to a directory."""
    make_config, make_model, options = HUGGING_FACE[name]
    shared = {"num_hidden_layers": 2, "layer_norm_eps": 3e-6} | options
    shared.pop("eos_token_id", None), shared.pop("projection_size", None)
    text = {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "vocab_size": 200,
        "max_position_embeddings": 12,
        "eos_token_id": 199,
        "bos_token_id": 198,
        "pad_token_id": 1,
    }
    text |= {k: v for k, v in options.items() if k in ("eos_token_id", "projection_size")}
    vision = {
        "hidden_size": 96,
        "intermediate_size": 200,
        "num_attention_heads": 6,
        "image_size": 34,
        "patch_size": 8,
    }
    whole = {"text_config": shared | text, "vision_config": shared | vision}
    if make_config is CLIPConfig:
        whole["projection_dim"] = 48
    model = draw(make_model(make_config(**whole)))
    model.save_pretrained(directory)
    return model


def openai_model():
    """A CLIP as OpenAI's, in OpenCLIP's class."""
    vision = CLIPVisionCfg(layers=2, width=128, head_width=64, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=12, vocab_size=200, width=128, heads=2, layers=3)
    return draw(CLIP(48, vision, text, quick_gelu=True, output_dict=True))
