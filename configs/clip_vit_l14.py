"""CLIP ViT-L/14 at the paper's hyper-parameters (arXiv:2103.00020, tables 18 and 20).

Run: vlrep train --config=configs/clip_vit_l14.py[:336] --workdir=W --config.data.source.path=DIR
Cost: not measured. Expected ImageNet zero-shot top-1: 75.3 (OpenAI, 400 M pairs); here: not
measured.

The argument 336 is the paper's L/14@336: the 224-pixel model, trained for one more epoch of 400 M
pairs at a peak of 2e-5. Begin it with what the first run learnt: --config.init_from=W
"""

from vlrep_jax import recipes

MODELS = {"": "ViT-L-14-quickgelu", "224": "ViT-L-14-quickgelu", "336": "ViT-L-14-336-quickgelu"}


def get_config(image_size=""):
    if image_size not in MODELS:
        raise ValueError(f"clip_vit_l14 takes an image size of 224 or 336, not {image_size!r}.")
    at_336 = image_size == "336"
    config = recipes.clip_paper(MODELS[image_size], peak=2e-5 if at_336 else 4e-4)
    config.microbatch.image = 8 if at_336 else 16  # as many tokens as 32 images of a B/16
    if not at_336:
        return config
    config.init_from = "runs/clip_vit_l14"
    config.steps //= 32
    return config
