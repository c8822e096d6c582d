"""CLIPA ViT-L/16 (arXiv:2305.07017): small images and short texts first, full size at the end.

Run: vlrep train --config=configs/clipa_vit_l16.py[:96] --workdir=W --config.data.source.path=DIR
     vlrep train --config=configs/clipa_vit_l16.py:224 --workdir=W2 --config.init_from=W \\
         --config.data.source.path=DIR
Cost: not measured. Expected ImageNet zero-shot top-1: 69.3 (paper, LAION-400M, 96 pixels and 8
tokens first); here: not measured.

Without an argument 112 pixels and 16 tokens, with 96 that many pixels and 8 tokens; 224 is the last
stage, 224 pixels and 32 tokens. Batches, learning rates, samples, warm-up, betas, decay and crops
are those of the paper's public configuration. Its positions are fixed in the image tower and its
vocabulary is another; here towers and tokenizer are CLIP's.
"""

from vlrep_jax import recipes

SIZES = {"": (112, 16), "96": (96, 8), "224": (224, 32)}  # pixels, tokens


def get_config(image_size=""):
    if image_size not in SIZES:
        raise ValueError(f"clipa_vit_l16 takes an image size of 96 or 224, not {image_size!r}.")
    pixels, tokens = SIZES[image_size]
    config = recipes.clip_paper("ViT-L-16", peak=8e-6 * 65_536 / 256)
    config.batch_size = 65_536
    samples, warmup_samples = 10_000 * 1_281_167, 52_428_800
    if image_size == "224":
        config.init_from = "runs/clipa_vit_l16"
        config.batch_size = 32_768
        config.schedule.peak = 8e-7 * 32_768 / 256
        samples, warmup_samples = 131_072_000, 26_214_400
    config.steps = samples // config.batch_size
    config.schedule.warmup_steps = warmup_samples // config.batch_size
    config.optimizer.b2 = 0.95
    config.model.image = {"image_size": pixels}
    config.model.text = {"context_length": tokens}
    config.data.transform = {"name": "random_crop", "scale": (0.4, 1.0)}
    return config
