"""CLIP ViT-L/14 at the paper's hyper-parameters (arXiv:2103.00020, tables 18 and 20).

Run: vlrep train --config=configs/clip_vit_l14.py[:336] --workdir=W --config.data.source.path=DIR
Cost: not measured. Expected ImageNet zero-shot top-1: 75.3 (OpenAI, 400 M pairs); here: not
measured.

The argument 336 trains the 336-pixel model with the same hyper-parameters from the start. The
paper's L/14@336 is the 224-pixel model trained for one more epoch at a peak of 2e-5.
"""

from vlrep_jax import recipes

MODELS = {"": "ViT-L-14", "224": "ViT-L-14", "336": "ViT-L-14-336"}


def get_config(image_size=""):
    if image_size not in MODELS:
        raise ValueError(f"clip_vit_l14 takes an image size of 224 or 336, not {image_size!r}.")
    return recipes.clip_paper(MODELS[image_size], peak=4e-4)
