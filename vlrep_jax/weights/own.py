"""This library's own layout: safetensors under our parameter paths, with what they belong to.

DIR/{config.json,model.safetensors,tokenizer.json}. Every model has a place in it.
"""

from collections.abc import Mapping
from pathlib import Path

from vlrep_jax.weights.mapping import Entry
from vlrep_jax.weights.tensors import read_json

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
FORMAT = "vlrep_jax 1"


def is_layout(file: Path) -> bool:
    """Whether the config beside a file is of this layout."""
    path = file.parent / CONFIG
    return path.is_file() and read_json(path).get("format") == FORMAT


def config(sections: Mapping) -> dict:
    """What CONFIG holds of a recipe's sections 'model' and 'image'."""
    return {"format": FORMAT, "model": sections["model"], "image": sections["image"]}


def section(config: Mapping) -> dict:
    """The section of `models.create`.

    Raises:
      ValueError: there is none, or none of pictures.
    """
    if not isinstance(config.get("model"), Mapping) or not isinstance(config.get("image"), Mapping):
        raise ValueError(f"{CONFIG} lacks the sections model and image.")
    return dict(config["model"])


def entries(paths) -> list[Entry]:
    """Every tensor has the name of its parameter."""
    return [Entry(path, path) for path in paths]
