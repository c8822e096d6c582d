"""A recipe that trains in seconds on coloured squares; being code, it brings its own source.

`vlrep train --config=tests/tiny_recipe.py --workdir=W`. Tests that stay in their process take
`config` and put `Squares` into the table for as long as they run.
"""

import colorsys
import hashlib
import io
import os
import time

import numpy as np
from PIL import Image

from vlrep_jax import recipes
from vlrep_jax.data.sources import SOURCES, Sample

TOWER = {"width": 16, "depth": 2, "heads": 2, "embed_dim": 16, "dropout": 0.1}


class Squares:
    """`count` squares, each of its own hue, with two captions."""

    def __init__(self, count=40):
        self._count = count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        # A test that must catch a run in the middle slows it down.
        time.sleep(float(os.environ.get("SQUARES_DELAY_S", 0)))
        return [self._sample(int(i)) for i in indices]

    def _sample(self, i):
        pixels = np.full((20, 20, 3), colorsys.hsv_to_rgb(i / self._count, 1, 1)) * 255
        out = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
        captions = (f"hue {i}", f"a square of hue {i}")
        return Sample(out.getvalue(), captions, str(i), {})

    def fingerprint(self):
        return hashlib.sha256(f"squares {self._count}".encode()).hexdigest()


def get_config():
    SOURCES["squares"] = Squares
    return config()


def config(**changed):
    """The recipe with values changed by dotted path: config(**{"parallel.wiring": "pmap"})."""
    made = recipes.base()
    made.batch_size = 16
    made.steps = 6
    made.model = {
        "name": "dual_encoder",
        "image": {"name": "vit", "image_size": 16, "patch_size": 8, **TOWER},
        "text": {"name": "text_transformer", "vocab_size": 300, "context_length": 8, **TOWER},
    }
    made.optimizer = {"name": "adamw", "weight_decay": 0.1}
    made.schedule = {"name": "cosine", "peak": 3e-3, "warmup_steps": 2}
    made.ema_decay = 0.9
    made.tokenizer = {"name": "bpe", "vocab_size": 300}
    made.data.source = {"name": "squares"}
    made.data.transform = {"name": "random_crop", "scale": (0.5, 1.0)}
    made.data.num_threads = 1
    made.log_every = 1
    made.eval_every = made.checkpoint_every = 100
    made.keep_checkpoints = 100
    for path, value in changed.items():
        *parents, last = path.split(".")
        section = made
        for name in parents:
            section = section[name]
        section[last] = value
    return made.lock()
