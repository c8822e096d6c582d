"""SigLIP ViT-B/16 at 224 px (arXiv:2303.15343).

Run: vlrep train --config=configs/siglip_vit_b16.py --workdir=W --config.data.source.path=DIR \\
         --config.tokenizer.path=tokenizer.json
Cost: not measured. Expected ImageNet zero-shot top-1: not measured.

The paper's text vocabulary (SentencePiece, 32,000 pieces of C4) is not shipped: give its
tokenizer.json. Padding and end of text share id 1, as in the released weights.
"""

from vlrep_jax import recipes

SAMPLES = 9_000_000_000  # pairs seen in the paper's longest B/16 run


def get_config():
    config = recipes.base()
    config.batch_size = 32_768
    config.steps = SAMPLES // config.batch_size
    config.microbatch.image = 32
    config.parallel.data, config.parallel.fsdp = 1, -1
    config.model = {
        "name": "ViT-B-16-SigLIP",
        "attention": "xla",
        "towers": {"dtype": "bfloat16", "remat": "full", "unroll": 1},
    }
    config.loss = {"name": "sigmoid"}
    config.optimizer = {"name": "adamw", "b1": 0.9, "b2": 0.95, "weight_decay": 1e-4}
    config.schedule = {"name": "cosine", "peak": 1e-3, "warmup_steps": 20_000}
    config.clip_norm = 1.0
    config.tokenizer = {
        "name": "file",
        "path": "",
        "pad_id": 1,
        "eos_id": 1,
        "lower_case": True,
    }
    config.image.update(recipes.image_section("ViT-B-16-SigLIP"))
    config.data.transform = {"name": "squash"}
    return config
