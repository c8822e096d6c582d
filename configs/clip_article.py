"""The article's CLIP: one transformer for both modalities, contrastive plus cross-entropy loss.

Run: vlrep train --config=configs/clip_article.py --workdir=W --config.data.source.path=DIR
Cost: not measured. Expected: not measured; the article gives no figures. Everything but model and
loss is the published CLIP's recipe for its B-sized model.
"""

from vlrep_jax import recipes


def get_config():
    config = recipes.clip_paper("clip-article", peak=5e-4)
    config.loss = {"name": "clip_article"}
    return config
