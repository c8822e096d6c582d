"""CLIP ViT-B/16 at the paper's hyper-parameters (arXiv:2103.00020, tables 18 and 20).

Run: vlrep train --config=configs/clip_vit_b16.py --workdir=W --config.data.source.path=DIR
Cost: not measured. Expected ImageNet zero-shot top-1: 68.3 (OpenAI, 400 M pairs); here: not
measured.
"""

from vlrep_jax import recipes


def get_config():
    return recipes.clip_paper("ViT-B-16-quickgelu", peak=5e-4)
