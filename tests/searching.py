"""Pictures, a small model and an index for the tests of search."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_pretrained import TINY, pretrained

from vlrep_jax import search, weights
from vlrep_jax.data.tokenizers import ClipTokenizer
from vlrep_jax.search import index

ONE_LAYER = {**TINY, "depth": 1, "embed_dim": 16}
MODEL = {
    "name": "dual_encoder",
    "image": {"name": "vit", "image_size": 16, "patch_size": 8, **ONE_LAYER},
    "text": {"name": "text_transformer", **ONE_LAYER},
}


@cache
def tiny() -> weights.Pretrained:
    return pretrained(MODEL, ClipTokenizer())


index.CHUNK = 8  # so that few pictures are many chunks
make_encoder, encoders = index._encoder, {}


def encoder_of(model):
    """Compiled once for a model, not for every index."""
    if id(model) not in encoders:
        encoders[id(model)] = model, make_encoder(model)  # the model too: its id stays its own
    return encoders[id(model)][1]


index._encoder = encoder_of


def saved(path: Path) -> Path:
    """The model's files; the index refers to it by its path."""
    weights.save(path, tiny(), "openclip")
    return path


def draw(path: Path, seed: int, size=(24, 20)) -> Path:
    """A picture that only its seed tells from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def draw_many(folder: Path, count: int, first: int = 0) -> list[Path]:
    return [draw(folder / f"{i:03d}.png", first + i) for i in range(count)]


def described():
    return search.described(tiny(), "tiny")


def built(out: Path, *images) -> search.index.Built:
    return search.build(out, tiny(), described(), [str(pattern) for pattern in images])


def names(engine: search.Engine) -> list[str]:
    """Names of an index's pictures, in its order."""
    pictures = engine.store.pictures(engine.ids.tolist())
    return [Path(pictures[i].found.name).name for i in engine.ids.tolist()]
