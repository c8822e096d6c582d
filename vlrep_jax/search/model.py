"""What tells one model from another, as far as embeddings of pictures depend on it."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from vlrep_jax.build import plain
from vlrep_jax.fingerprint import fingerprints
from vlrep_jax.weights import Pretrained


def described(model: Pretrained, path: str | Path) -> dict:
    """{"path", "fingerprint"} of a model.

    The fingerprint is a hash of the bits of all parameters, the architecture and the
    preprocessing. A work directory and the model it leaves have the same.
    """
    known = {
        "model": plain(model.config["model"]),
        "preprocess": asdict(model.preprocess),
        "parameters": fingerprints(model.params),
    }
    text = json.dumps(known, sort_keys=True, default=str)
    name = str(path)
    path = name if "@" in name and not Path(name).exists() else str(Path(name).absolute())
    return {"path": path, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}
