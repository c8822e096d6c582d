"""FLIP ViT-L/16 (arXiv:2212.00794): half of the patches are dropped, then a short unmasked tuning.

Run: vlrep train --config=configs/flip_vit_l16.py --workdir=W --config.data.source.path=DIR
     vlrep train --config=configs/flip_vit_l16.py:tune --workdir=W2 --config.init_from=W \\
         --config.data.source.path=DIR
Cost: not measured. Expected ImageNet zero-shot top-1: 74.3 (paper, LAION-400M, both stages); here:
not measured.

Batch, learning rates, samples, warm-up, betas, decay, crops and text length are those of the
paper's public configuration. Its image tower averages its tokens and its text tower is not causal;
here towers and tokenizer are CLIP's.
"""

from vlrep_jax import recipes

EPOCH = 1_281_167  # samples; the paper counts in ImageNet's epochs


def get_config(stage=""):
    if stage not in ("", "tune"):
        raise ValueError(f"flip_vit_l16 takes no argument, or 'tune', not {stage!r}.")
    config = recipes.clip_paper("ViT-L-16", peak=4e-6 * 65_536 / 256)
    config.batch_size = 65_536
    config.steps = 10_000 * EPOCH // config.batch_size
    config.schedule.warmup_steps = 20 * EPOCH // config.batch_size
    config.optimizer.b2 = 0.95
    config.model.image = {"patch_keep": 0.5}
    config.model.text = {"context_length": 32}
    config.data.transform = {"name": "random_crop", "scale": (0.5, 1.0)}
    if stage == "tune":
        config.init_from = "runs/flip_vit_l16"
        config.model.image.patch_keep = 1.0
        config.steps = 100 * EPOCH // config.batch_size
        config.schedule.peak = 4e-8 * 65_536 / 256
    return config
