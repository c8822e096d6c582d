"""Clips of emoji that move: frames through an image tower, a transformer over time.

Run: vlrep train --config=configs/video_quickstart.py --workdir=runs/video
     configs/video_quickstart.py:mean pools the frames by their mean, which sees no order.
Cost: three minutes of 2 cores, and evaluations. Expected: which way unseen concepts move, 1.00; by
     the mean 0.50.
"""

import runpy
from pathlib import Path

FRAMES, SIDE = 8, 32


def get_config(pool="transformer"):
    quickstart = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))
    config = quickstart["get_config"]()
    config.batch_size = 64
    config.steps = 300
    frame = {
        **config.model.image.to_dict(),
        "image_size": SIDE,
        "patch_keep": 1.0,
        "width": 96,
        "depth": 1,
        "embed_dim": None,
    }
    config.model.image = {
        "name": "video",
        "frame": frame,
        "frames": FRAMES,
        "pool": pool,
        "width": 96,
        "depth": 1,
        "heads": 4,
        "embed_dim": 128,
        "activation": "quick_gelu",
    }
    config.schedule.peak = 4e-3

    def clips(split):
        pictures = {"name": "emoji_captions", "data_dir": "data", "split": split}
        return {"name": "moving", "source": pictures, "frames": FRAMES, "side": SIDE}

    config.data.source = clips("train")
    config.data.transform = {"name": "clip", "frames": FRAMES}
    config.data.caption = {"name": "first"}
    config.data.cache = False
    sets = ("left_right", "up_down", "growing_shrinking", "motion")
    config.evals = {
        "unseen": {"name": "retrieval", "source": clips("unseen")},
        "motion": {"name": "zero_shot", "source": clips("unseen"), "sets": sets},
    }
    config.eval_every = config.checkpoint_every = 150
    return config
