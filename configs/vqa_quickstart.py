"""Questions about emoji, answered by fusion layers with a head of answers.

Run: vlrep train --config=configs/vqa_quickstart.py --workdir=runs/vqa
     after vlrep train --config=configs/fusion_quickstart.py --workdir=runs/fusion
Cost: three minutes of 2 cores. Expected on unseen concepts: 0.72, see docs/applications/vqa.md.

It begins with what `configs/fusion_quickstart.py` learnt, but for the head. The questions are made
from the pictures' own annotations (`data/emoji_questions.py`).
"""

import runpy
from pathlib import Path

from vlrep_jax.data.emoji_questions import ANSWERS

DATA_DIR = "data"


def get_config():
    fusion = runpy.run_path(str(Path(__file__).with_name("fusion_quickstart.py")))
    config = fusion["get_config"]()
    config.init_from = "runs/fusion"
    config.init_skip = ("head/.*", "words/.*")
    config.freeze = ()
    config.matching_weight = config.captioning_weight = 0.0
    config.matching_every = 1
    config.batch_size = 64
    config.model.captions = False
    config.model.answers = ANSWERS
    config.model.text.context_length = 24  # questions hold names
    # Counting needs every part of a scene.
    config.model.image.patch_keep = 1.0
    config.steps = 300
    config.schedule.peak = 3e-3
    config.data.source = {"name": "emoji_questions", "data_dir": DATA_DIR, "split": "train"}
    config.data.caption = {"name": "first"}
    unseen = {"name": "emoji_questions", "data_dir": DATA_DIR, "split": "unseen"}
    config.evals = {"unseen": {"name": "answers", "source": unseen}}
    return config
