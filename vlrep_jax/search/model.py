"""What tells one model from another, as far as embeddings of pictures depend on it."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from vlrep_jax.build import plain
from vlrep_jax.fingerprint import on_host
from vlrep_jax.rules import path_of
from vlrep_jax.weights import Pretrained


def described(model: Pretrained, path: str | Path) -> dict:
    """{"path", "fingerprint"} of a model.

    The fingerprint is a hash of the bits of all parameters, the architecture and the
    preprocessing. A work directory and the model it leaves have the same.
    """
    leaves = jax.tree_util.tree_leaves_with_path(model.params)
    known = {
        "model": plain(model.config["model"]),
        "preprocess": asdict(model.preprocess),
        # On the host: on a device there would be a program to compile for every shape.
        "parameters": {path_of(path): on_host(np.asarray(leaf)) for path, leaf in leaves},
    }
    text = json.dumps(known, sort_keys=True, default=str)
    name = str(path)
    path = name if "@" in name and not Path(name).exists() else str(Path(name).absolute())
    return {"path": path, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}
