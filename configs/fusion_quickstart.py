"""Fusion layers on the quick start's towers, to rank their nearest pictures and captions again.

Run: vlrep train --config=configs/fusion_quickstart.py --workdir=runs/fusion
     after vlrep train --config=configs/quickstart.py --workdir=runs/quickstart
Cost: about ten minutes of 2 cores. Expected on unseen concepts: see docs/applications/fusion.md.

The towers rest, so what is ranked again is the quick start's own list. All can be trained together
from the start: --config.init_from= --config.freeze='()'.
"""

import runpy
from pathlib import Path


def get_config():
    quickstart = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))
    config = quickstart["get_config"]()
    config.init_from = "runs/quickstart"
    config.init_skip = ("fusion/.*", "gate/.*", "head/.*", "words/.*")
    config.freeze = ("image/.*", "text/.*", "logit_scale")
    config.model = {
        **config.model.to_dict(),
        "name": "fusion_encoder",
        "captions": True,
        "fusion": {
            "name": "cross_encoder",
            "width": 128,
            "depth": 1,
            "heads": 4,
            "activation": "quick_gelu",
        },
    }
    config.matching_weight = 1.0
    config.captioning_weight = 1.0
    # Judged are 128 pairs a step; what they are told from is drawn among 512.
    config.batch_size = 512
    config.matching_every = 4
    config.steps = 1000
    config.eval_every = config.checkpoint_every = 500
    # The same pictures by the towers alone and ranked again.
    for name in ("unseen", "unseen_motifs", "unseen_openmoji"):
        config.evals[f"{name}_again"] = {
            "name": "rerank",
            "source": config.evals[name].source,
            "depth": 10,
            "matching": 0.5,  # the judge is surer of new concepts than it is right
            "captions": 0.1,
        }
    return config
