"""What a work directory says of its run: the resolved config and the tokenizer, as JSON.

A config file is code, so what is read back from a work directory is its values, never the file.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from ml_collections import ConfigDict

import vlrep_jax
from vlrep_jax import recipes
from vlrep_jax.build import near, plain

# These may change between two runs in one directory: what is trained stays the same.
CHANGEABLE = (
    "checkpoint_every",
    "chunks",
    "cluster",
    "compilation_cache",
    "data.decoder",  # what 'auto' found is in the pipeline's fingerprint, which is compared too
    "data.num_threads",
    "data.num_workers",
    "data.on_change",
    "data.prefetch",
    "data.cache",
    "data.max_bad_fraction",
    # Where the data lie; what they are is in the pipeline's fingerprint, which is compared too.
    "data.source.data_dir",
    "data.source.path",
    "eval_every",
    "evals",
    "keep_best",
    "keep_checkpoints",
    "keep_every",
    "log_every",
    "max_skipped",
    "microbatch",
    "model.attention",
    "model.towers.remat",
    "model.towers.unroll",
    "on_save_error",
    "parallel",
    "spikes",
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def write_json(path: Path, value) -> None:
    """Writes a JSON file whole or not at all, whatever happens meanwhile."""
    part = path.with_suffix(".part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
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
    return ConfigDict(completed(values))


def completed(values: Mapping) -> dict:
    """A saved config with the defaults of the keys that are younger."""
    known, values = plain(recipes.base()), dict(values)
    for name in recipes.FIXED_SECTIONS:
        if isinstance(values.get(name), dict):
            values[name] = known[name] | values[name]
    return known | values


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
    free = (*CHANGEABLE, "data") if config.data.on_change == "continue" else CHANGEABLE
    differing = changes(read_config(workdir), config, but=free)
    if differing:
        listing = "; ".join(differing[:8])
        more = f"; and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise ValueError(
            f"{workdir} holds a run of another config: {listing}{more}. Choose another --workdir, "
            "or restore these values to continue it."
        )
    return True


def changes(before: Mapping, now: Mapping, *, but: Sequence[str] = ()) -> list[str]:
    """'KEY was X, now Y' for each value that differs in two configs, but for some sections."""
    old, new = flat(plain(before)), flat(plain(now))
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    differing = [k for k in differing if not any(k == b or k.startswith(f"{b}.") for b in but)]
    return [f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in differing]


def check_metric(name: str, values: Mapping[str, float]) -> None:
    """Raises ValueError where config.keep_best.metric is none of an evaluation's metrics."""
    if name and name not in values:
        raise ValueError(f"config.keep_best.metric={name!r}: {near(name, values)}.")


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on, this library's with a hash of its sources."""
    installed = {name: metadata.version(name) for name in PACKAGES}
    return {"vlrep_jax": code_version(), **installed}


@cache
def code_version() -> str:
    """This library's version and what its sources are, such as '0.1.0+3f9c0a1b2c4d'."""
    root, digest = Path(vlrep_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return f"{vlrep_jax.__version__}+{digest.hexdigest()[:12]}"


def flat(section, prefix=""):
    """{'a.b': value} of nested dicts; an empty section counts as a value."""
    found = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
