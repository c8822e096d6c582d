"""`config.init_from`: the parameters that a run begins with, from a run that was trained before.

Training in stages (FLIP's unmasked tuning, CLIPA's full resolution, CLIP's L/14@336) is a run each,
with its own recipe and work directory; this is all that passes from one to the next.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vlrep_jax.checkpoint import Checkpoints
from vlrep_jax.data.tokenizers import Tokenizer, load_tokenizer
from vlrep_jax.experiment import make_tokenizer
from vlrep_jax.models.positions import fit_text_positions, resize_image_positions
from vlrep_jax.rules import path_of
from vlrep_jax.train import TrainState

# Parameters whose number of rows may differ: those of `ViT`, `ResNet` and `TextTransformer`, and
# the shared encoder's.
IMAGE_POSITIONS = (
    "image/positional_embedding",
    "image/pool/positional_embedding",
    "image_positions",
)
TEXT_POSITIONS = ("text/positional_embedding", "text_positions")


@dataclass(frozen=True)
class Initial:
    """A checkpoint whose parameters fit a model, but for position embeddings of other sizes.

    Attributes:
      workdir, step: where it is.
      resized: path of each parameter that changes its size -> words on how.
      last_is_read: see `fit_text_positions`.
    """

    workdir: Path
    step: int
    resized: dict[str, str]
    last_is_read: bool

    def summary(self) -> str:
        """One line on what a run begins with."""
        changes = "; ".join(f"{path} {how}" for path, how in self.resized.items())
        return f"Parameters of {self.workdir}, step {self.step}" + (
            f": {changes}." if changes else "."
        )

    def tokenizer(self, config: ConfigDict) -> Tokenizer:
        """The tokenizer that the parameters were trained with.

        Raises:
          ValueError: the config names another one: its ids would mean other words.
        """
        trained = load_tokenizer(self.workdir / "tokenizer.json")
        # 'bpe' names no vocabulary, only how to learn one; what was learnt there is taken over.
        if config.tokenizer.get("name") == trained.kind == "bpe":
            return trained
        own = make_tokenizer(config)
        if own.fingerprint() != trained.fingerprint():
            raise ValueError(
                f"config.tokenizer is {own.kind!r}, but the token ids of {self.workdir} are those "
                f"of another ({trained.kind!r}, {self.workdir / 'tokenizer.json'}): use that one, "
                "or begin without config.init_from."
            )
        return own

    def state(self, drawn: TrainState) -> TrainState:
        """The state before the first step with the checkpoint's parameters, laid out as `drawn`."""
        with closing(Checkpoints(self.workdir, read_only=True)) as checkpoints:
            loaded = checkpoints.parameters(self.step)

        def placed(key_path, leaf, value):
            fit = _FITS.get(path_of(key_path))
            if fit and value.shape != leaf.shape:
                fit = jax.jit(fit, static_argnums=2, out_shardings=leaf.sharding)
                return fit(value, leaf, self.last_is_read)
            # Each process has the whole value and gives its devices their part.
            value = value.astype(leaf.dtype)
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: value[i])

        params = jax.tree_util.tree_map_with_path(placed, drawn.params, loaded)
        # No optimizer's state begins with values of the parameters, so the rest stays.
        ema = None if drawn.ema is None else jax.tree.map(jnp.copy, params)
        return drawn._replace(params=params, ema=ema)


def find_initial(init_from: str, params, model) -> Initial:
    """Finds a checkpoint and compares what it holds with what a model needs; reads no values yet.

    Args:
      init_from: 'WORKDIR', its newest checkpoint, or 'WORKDIR@STEP'. A moving average of the
        parameters is taken before the parameters themselves, as evaluations do.
      params: tree of the model's parameters, as shapes.
      model: made by `models.create`.

    Raises:
      FileNotFoundError: no such run or checkpoint.
      ValueError: it does not fit; every parameter that is missing, left over or of another shape
        is named.
    """
    name, at, number = init_from.rpartition("@")
    workdir, step = (
        (Path(name), int(number)) if at and number.isdigit() else (Path(init_from), None)
    )
    if not (workdir / "checkpoints").is_dir() or not (workdir / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"config.init_from={init_from}: {workdir} is not the work directory of a run with a "
            "checkpoint."
        )
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        if not checkpoints.steps():
            raise FileNotFoundError(f"config.init_from={init_from}: there is no checkpoint yet.")
        step = checkpoints.steps()[-1] if step is None else step
        found = _by_path(checkpoints.parameter_shapes(step))
    needed = _by_path(params)
    problems, resized = _compare(found, needed)
    if problems:
        raise ValueError(
            f"config.init_from={init_from} does not fit config.model: {'; '.join(problems)}."
        )
    pool = getattr(getattr(model, "text", model), "pool", "")
    return Initial(workdir, step, resized, last_is_read=pool in ("last", "cls"))


def _compare(found, needed):
    """(what is wrong, what is resized), both in words, of two {path: shape}."""
    problems = [f"{path} is missing" for path in sorted(needed.keys() - found.keys())]
    problems += [f"{path} is left over" for path in sorted(found.keys() - needed.keys())]
    resized = {}
    for path in sorted(found.keys() & needed.keys()):
        old, new = found[path], needed[path]
        if old == new:
            continue
        if path not in _FITS or old[1:] != new[1:]:
            problems.append(f"{path} has shape {old}, not {new}")
        elif path in IMAGE_POSITIONS:
            resized[path] = f"resized from {old[0]} to {new[0]}"
        else:
            how = "cut" if new < old else "extended"
            resized[path] = f"{how} from {old[0]} to {new[0]}"
    return problems, resized


def _fit_image(trained, fresh, last_is_read):
    return resize_image_positions(trained, len(fresh))


def _fit_text(trained, fresh, last_is_read):
    return fit_text_positions(trained, fresh, last_is_read=last_is_read)


_FITS: dict[str, Callable] = {
    **dict.fromkeys(IMAGE_POSITIONS, _fit_image),
    **dict.fromkeys(TEXT_POSITIONS, _fit_text),
}


def _by_path(tree):
    """{path: shape} of a tree of arrays or shapes."""
    return {path_of(p): tuple(leaf.shape) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
