"""A small CLIP on emoji with fusion layers that rank its nearest pictures and captions again.

Run: vlrep train --config=configs/fusion_quickstart.py --workdir=runs/fusion
Cost: not measured yet. Expected on unseen concepts: see docs/applications/fusion.md.

The quick start's towers and data, trained by the contrastive loss and image-text matching together.
"""

import runpy
from pathlib import Path


def get_config():
    quickstart = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))
    config = quickstart["get_config"]()
    config.model = {
        **config.model.to_dict(),
        "name": "fusion_encoder",
        "fusion": {
            "name": "cross_encoder",
            "width": 128,
            "depth": 1,
            "heads": 4,
            "activation": "quick_gelu",
        },
    }
    config.matching_weight = 1.0
    config.steps = 300
    config.eval_every = config.checkpoint_every = 100
    # The same pictures by the towers alone and ranked again.
    for name in ("unseen", "unseen_motifs", "unseen_openmoji"):
        config.evals[f"{name}_again"] = {"name": "rerank", "source": config.evals[name].source}
    return config
