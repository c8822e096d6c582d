"""CoCa ViT-B/32: contrast and captions from one model (arXiv:2205.01917).

Run: vlrep train --config=configs/coca_vit_b32.py --workdir=W --config.data.source.path=DIR
Cost: not measured. Expected ImageNet zero-shot top-1: not measured.

The weights of the two losses are the paper's, 1 and 2; batch and schedule are CLIP's, for the
paper's (batch 65,536, Adafactor) are of a model eight times as large.
"""

from vlrep_jax import recipes


def get_config():
    config = recipes.clip_paper("coca_ViT-B-32", peak=5e-4)
    config.captioning_weight = 2.0
    # Logits are the largest thing there is: 16 texts of 75 words are 0.24 GB of them.
    config.microbatch.image = 16
    return config
