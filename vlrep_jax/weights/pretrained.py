"""`load` gives a published model ready for use; `save` writes one in another project's format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from vlrep_jax.weights import big_vision, files, huggingface, openai, openclip
from vlrep_jax.weights.mapping import their_shapes, theirs
from vlrep_jax.weights.reading import by_path, open_pretrained

LAYOUTS = ("huggingface", "openclip", "openai", "big_vision")


@dataclass(frozen=True)
class Pretrained:
    """A model with its parameters and everything that its inputs need."""

    model: Any
    params: Any
    preprocess: Callable = None
    tokenizer: Callable = None
    config: Mapping = None


def load(path, model=None) -> Pretrained:
    opened = open_pretrained(path, model)
    return Pretrained(
        opened.model,
        jax.tree.map(jax.numpy.asarray, opened.read()),
        config={"model": opened.section},
    )


def save(path, pretrained: Pretrained, layout: str) -> None:
    model, leaves = pretrained.model, by_path(pretrained.params)
    module = {
        "huggingface": huggingface,
        "openclip": openclip,
        "openai": openai,
        "big_vision": big_vision,
    }[layout]
    entries = module.entries(model)
    shapes = their_shapes(entries, {p: leaf.shape for p, leaf in leaves.items()})
    tensors = theirs(entries, leaves)
    path = Path(path)
    with files.whole(path) as part:
        if layout == "huggingface":
            part.mkdir()
            from vlrep_jax.workdirs import write_json

            write_json(part / "config.json", huggingface.config(model))
            files.write_safetensors(part / "model.safetensors", shapes, tensors)
        elif layout == "openclip":
            part.mkdir()
            from vlrep_jax.workdirs import write_json

            write_json(part / "open_clip_config.json", {"model_cfg": openclip.config(model)})
            files.write_safetensors(part / "open_clip_model.safetensors", shapes, tensors)
        elif layout == "openai":
            files.write_torch(part, shapes, tensors)
        else:
            files.write_npz(part, shapes, tensors)
