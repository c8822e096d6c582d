"""CLIP ViT-B/32 at the paper's hyper-parameters (arXiv:2103.00020, tables 18 and 20).

Run: vlrep train --config=configs/clip_vit_b32.py --workdir=W --config.data.source.path=DIR
Cost: not measured. Expected ImageNet zero-shot top-1: 63.3 (OpenAI, 400 M pairs), 62.96
(open_clip, LAION-400M); here: not measured.
"""

from vlrep_jax import recipes


def get_config():
    return recipes.clip_paper("ViT-B-32-quickgelu", peak=5e-4)
