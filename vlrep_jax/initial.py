"""`config.init_from`: the parameters that a run begins with, of a run or of a published model.

Training in stages (FLIP's unmasked tuning, CLIPA's full resolution, CLIP's L/14@336) is a run each,
with its own recipe and work directory; this is all that passes from one to the next.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vlrep_jax.data.tokenizers import Tokenizer
from vlrep_jax.experiment import make_tokenizer
from vlrep_jax.models.positions import fit_text_positions, resize_image_positions
from vlrep_jax.rules import path_of
from vlrep_jax.train import TrainState
from vlrep_jax.weights.layout import pools_largest_id
from vlrep_jax.weights.reading import Opened, by_path, open_pretrained

# Parameters whose number of rows may differ: those of the towers, and the shared encoder's.
IMAGE_POSITIONS = (
    "image/positional_embedding",
    "image/pool/positional_embedding",
    "image_positions",
)
TEXT_POSITIONS = ("text/positional_embedding", "text_positions")
_HEAD = ("head/kernel", "head/bias")


@dataclass(frozen=True)
class Initial:
    """A trained model whose parameters fit another, but for those that begin anew.

    Attributes:
      opened: the trained model.
      resized: path of each parameter that changes its size -> words on how.
      drawn: paths of the model's parameters that begin anew.
      left: paths of the trained parameters that are not taken.
      last_is_read: see `fit_text_positions`.
      image_changes: what `config.image` says of pictures that was otherwise in training.
    """

    opened: Opened
    resized: dict[str, str]
    drawn: tuple[str, ...]
    left: tuple[str, ...]
    last_is_read: bool
    image_changes: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line on what a run begins with."""
        changes = [f"{path} {how}" for path, how in self.resized.items()]
        if self.drawn:
            changes.append(f"begun anew: {_listing(self.drawn)}")
        if self.left:
            changes.append(f"not taken: {_listing(self.left)}")
        changes += self.image_changes
        listing = "; ".join(changes)
        return f"Parameters of {self.opened.path}" + (f": {listing}." if changes else ".")

    def tokenizer(self, config: ConfigDict) -> Tokenizer:
        """The tokenizer that the parameters were trained with.

        Raises:
          ValueError: the config names another one: its ids would mean other words.
        """
        trained = self.opened.tokenizer()
        if trained is None or _is_text(self.drawn):
            return make_tokenizer(config)
        # 'bpe' names no vocabulary, only how to learn one; what was learnt there is taken over.
        if config.tokenizer.get("name") == trained.kind == "bpe":
            return trained
        own = make_tokenizer(config)
        if own.fingerprint() != trained.fingerprint() and not _same_ids(own, trained):
            raise ValueError(
                f"config.tokenizer is {own.kind!r}, but the token ids of {self.opened.path} are "
                f"those of another ({trained.kind!r}): use that one, or begin without "
                "config.init_from."
            )
        return own

    def state(self, drawn: TrainState) -> TrainState:
        """The state before the first step with the trained parameters, laid out as `drawn`."""
        loaded = by_path(self.opened.read())

        def placed(key_path, leaf):
            path = path_of(key_path)
            if path in self.drawn:
                return leaf
            value, fit = loaded.pop(path), _FITS.get(path)
            if fit and value.shape != leaf.shape:
                fit = jax.jit(fit, static_argnums=2, out_shardings=leaf.sharding)
                return fit(value, leaf, self.last_is_read)
            # Each process has the whole value and gives its devices their part.
            value = value.astype(leaf.dtype)
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: value[i])

        params = jax.tree_util.tree_map_with_path(placed, drawn.params)
        # No optimizer's state begins with values of the parameters, so the rest stays.
        ema = None if drawn.ema is None else jax.tree.map(jnp.copy, params)
        return drawn._replace(params=params, ema=ema)


def find_initial(
    init_from: str, params, model, *, skip: Sequence[str] = (), image: Mapping | None = None
) -> Initial:
    """Finds a trained model and compares it with what a model needs; reads no values yet.

    Args:
      init_from: what `weights.load` takes: a work directory ('WORKDIR', its newest checkpoint, or
        'WORKDIR@STEP'; a moving average of the parameters is taken before the parameters
        themselves, as evaluations do), or the files of a published model.
      params: tree of the model's parameters, as shapes.
      model: made by `models.create`.
      skip: patterns over parameter paths, of either side, that begin anew or are not taken:
        ('text/.*',) takes over the image tower alone, ('.*/projection/.*',) draws new heads.
      image: `config.image`, where it is to be compared with what the model was trained on.

    Raises:
      FileNotFoundError: no such run, checkpoint or file.
      ValueError: it does not fit; every parameter that is missing, left over or of another shape
        is named. Or a pattern matches nothing.
    """
    try:
        opened = open_pretrained(init_from)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"config.init_from={init_from}: {error}") from error
    needed = {path: tuple(leaf.shape) for path, leaf in by_path(params).items()}
    found = opened.shapes()
    skipped = {path for path in {*found, *needed} if any(re.fullmatch(p, path) for p in skip)}
    for pattern in skip:
        if not any(re.fullmatch(pattern, path) for path in skipped):
            raise ValueError(f"config.init_skip: {pattern!r} matches no parameter.")
    problems = [
        f"config.model.{part}.{option} is {now!r}, trained with {then!r}"
        for part, option, now, then in _changed(model, opened.model)
        if not _is_left(part, needed, skipped)
    ]
    if _heads_differ(model, opened.model) and not skipped.issuperset(_HEAD):
        problems.append("config.model.answers are not those that head/.* was trained to tell apart")
    unfit, resized = _compare(
        {path: shape for path, shape in found.items() if path not in skipped},
        {path: shape for path, shape in needed.items() if path not in skipped},
    )
    problems += unfit
    if problems:
        raise ValueError(
            f"config.init_from={init_from} does not fit config.model: {'; '.join(problems)}. "
            "config.init_skip names what is to begin anew or not to be taken."
        )
    pool = getattr(getattr(model, "text", model), "pool", "")
    trained = opened.preprocess.section()
    return Initial(
        opened,
        resized,
        drawn=tuple(sorted(skipped & needed.keys())),
        left=tuple(sorted(skipped & found.keys())),
        last_is_read=pool in ("last", "cls"),
        image_changes=tuple(
            f"config.image.{name} is {value}, trained with {trained[name]}"
            for name, value in (image or {}).items()
            if _as_tuple(value) != _as_tuple(trained[name])
        ),
    )


def _as_tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _changed(model, trained):
    """(part, option, value here, value there) of what changes the numbers but no shape."""
    for part in ("image", "image.frame", "text", "fusion", "decoder"):
        here, there = (_part(one, part) for one in (model, trained))
        for option in ("activation", "ln_eps", "causal", "pool"):
            now, then = _option(here, option), _option(there, option)
            if None not in (now, then) and now != then:
                yield part, option, now, then


def _part(model, name):
    """A part of a model, or None; a shared encoder is both of its towers."""
    for one in name.split("."):
        model = getattr(model, one, model if one in ("image", "text") else None)
    return model


def _heads_differ(model, trained):
    """Whether both have a head of `FusionEncoder`, and not of the same answers."""
    answers = [getattr(one, "answers", None) for one in (model, trained)]
    return None not in answers and answers[0] != answers[1]


def _option(tower, name):
    """A tower's option; an end token that is the largest id is one pool in two words."""
    if name == "pool" and hasattr(tower, "eos_id") and pools_largest_id(tower):
        return "eot"
    return getattr(tower, name, None)


def _is_left(part, needed, skipped):
    """Whether the layers of a part begin anew."""
    top = part.replace(".", "/")
    layers = [path for path in needed if re.match(f"{top}/(.*/)?(transformer|layers)/", path)]
    return bool(layers) and skipped.issuperset(layers)


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


def _is_text(paths):
    """Whether the token embedding is among some parameters: ids mean nothing to a new one."""
    return any("token_embedding" in path for path in paths)


# English, accents, other scripts, an emoji, digits and marks: two vocabularies differ in some.
_PROBES = ("a photo of a cat", "Hello World!", "naïve café", "猫 кот", "🐱", "I'm 25 years-old!?")


def _same_ids(one, other):
    """Whether two tokenizers give the same ids up to the end of a text; padding may differ.

    CLIP's own and one read from a directory of its files are of different kinds.
    """

    def ids(tokenizer):
        rows = tokenizer(_PROBES, 32).tolist()
        return [row[: row.index(tokenizer.eos_id) + 1] for row in rows]

    return ids(one) == ids(other)


def _listing(paths):
    """Paths in words: whole towers by their name, the rest one by one."""
    heads = {}
    for path in paths:
        heads.setdefault("/".join(path.split("/")[:2]), []).append(path)
    return ", ".join(
        one[0] if len(one) == 1 else f"{head} ({len(one)})" for head, one in heads.items()
    )
