"""CLIP RN50 at the paper's hyper-parameters (arXiv:2103.00020, tables 18 and 19).

Run: vlrep train --config=configs/clip_rn50.py --workdir=W --config.data.source.path=DIR
Cost: not measured. Expected ImageNet zero-shot top-1: 59.6 (OpenAI, 400 M pairs), 36.45 (CC12M) and
32.7 (YFCC15M, both open_clip); here: not measured.

Batch norm sees the whole global batch, so images go through the tower at once. A device that they
do not fit trains with --config.model.image.batch_norm=frozen and config.microbatch.image, from
weights whose statistics are trained.
"""

from vlrep_jax import recipes


def get_config():
    config = recipes.clip_paper("RN50-quickgelu", peak=5e-4)
    config.microbatch.image, config.microbatch.text = 0, 32
    config.model.image = {"batch_norm": "batch"}
    # A ResNet's layers are not in a loop that could be unrolled.
    del config.model.towers.unroll
    config.optimizer.b2, config.optimizer.eps = 0.999, 1e-8
    return config
