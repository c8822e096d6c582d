"""The article's ViLD: two towers with a fixed temperature of 0.07, symmetric InfoNCE.

Run: vlrep train --config=configs/vild_article.py --workdir=W --config.data.source.path=DIR
Cost: not measured. Expected: not measured; the article gives no figures. Everything but the
temperature is the published CLIP's recipe for B/16. The published ViLD is an open-vocabulary
detector, which this is not.
"""

from vlrep_jax import recipes


def get_config():
    config = recipes.clip_paper("vild-article", peak=5e-4)
    # The article's formula sums the two directions, its code averages them.
    config.loss = {"name": "vild", "sum_directions": False}
    return config
