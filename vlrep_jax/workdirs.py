"""What a work directory says of its run: the resolved config and the tokenizer, as JSON.

A config file is code, so what is read back from a work directory is its values, never the file.
"""

import json
import os
from importlib import metadata
from pathlib import Path

from ml_collections import ConfigDict

from vlrep_jax import recipes
from vlrep_jax.build import plain

# These may change between two runs in one directory: what is trained stays the same.
CHANGEABLE = (
    "checkpoint_every",
    "chunks",
    "compilation_cache",
    "data.num_threads",
    "data.prefetch",
    "data.cache",
    "data.max_bad_fraction",
    # Where the data lie; what they are is in the pipeline's fingerprint, which is compared too.
    "data.source.data_dir",
    "data.source.path",
    "eval_every",
    "evals",
    "keep_checkpoints",
    "log_every",
    "microbatch",
    "model.attention",
    "model.towers.remat",
    "model.towers.unroll",
    "parallel",
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_json(path: Path, value) -> None:
    """Writes a JSON file whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_config(workdir: Path) -> ConfigDict:
    """The config that was trained in a work directory.

    A key that is younger than the run has its default: that is what the run did without it.

    Raises:
      FileNotFoundError: it holds none.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{workdir} is not the work directory of a run: there is no {path}. Train one with "
            f"vlrep train --config=FILE --workdir={workdir}."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} holds no config ({error}); it was changed or cut.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no config but {type(values).__name__}; it was changed.")
    known = plain(recipes.base())
    for name in recipes.FIXED_SECTIONS:
        if isinstance(values.get(name), dict):
            values[name] = known[name] | values[name]
    return ConfigDict(known | values)


def check_same_run(workdir: Path, config: ConfigDict) -> bool:
    """Whether a directory holds a run of this config, begun and to be continued.

    Raises:
      ValueError: it holds a run of another config; the message names what differs.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is a file; name a directory.")
    checkpoints = workdir / "checkpoints"
    if not checkpoints.is_dir() or not any(checkpoints.iterdir()):
        return False  # nothing was trained yet that could be mixed with something else
    for name in ("config.json", "tokenizer.json"):
        if not (workdir / name).exists():
            raise ValueError(
                f"{workdir} holds checkpoints without {name}, so it cannot be known what they are "
                "of. Restore that file, or choose another --workdir."
            )
    old, new = _flat(plain(read_config(workdir))), _flat(plain(config))
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    differing = [key for key in differing if not _may_change(key)]
    if differing:
        listing = "; ".join(f"{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in differing[:8])
        more = f"; and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise ValueError(
            f"{workdir} holds a run of another config: {listing}{more}. Choose another --workdir, "
            "or restore these values to continue it."
        )
    return True


def versions() -> dict[str, str]:
    """Installed versions of what a run's numbers depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


def _may_change(key):
    return any(key == free or key.startswith(f"{free}.") for free in CHANGEABLE)


def _flat(section, prefix=""):
    """{'a.b': value} of nested dicts; an empty section counts as a value."""
    flat = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
