"""Finds out whose format a path holds and what model is in it, and reads its parameters."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vlrep_jax import models
from vlrep_jax.build import near, plain
from vlrep_jax.checkpoint import Checkpoints
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.preprocess_files import from_huggingface, from_openclip
from vlrep_jax.data.tokenizers import (
    ClipTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_directory,
)
from vlrep_jax.rules import path_of
from vlrep_jax.weights import big_vision, huggingface, openai, openclip, own, resnet
from vlrep_jax.weights.mapping import Entry, compare
from vlrep_jax.weights.tensors import SUFFIXES, Tensors, open_tensors, read_json, weight_map
from vlrep_jax.weights.values import read_values
from vlrep_jax.workdirs import read_config

# What trainers leave beside weights, in the same kinds of files.
_NOT_WEIGHTS = ("optimizer", "scheduler", "training_args", "rng_state", "scaler")
_PROBLEMS_SHOWN = 5000  # all of bigG's, were every name another
_MOST_LAYERS = 1000
_SCALARS = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class Opened:
    """A model that was found and fits its file; no tensor has been read.

    Attributes:
      path: the file, or the work directory with its step, for messages.
      layout: 'huggingface', 'openclip', 'openai', 'big_vision', 'vlrep' or 'workdir'.
      section: of `models.create`.
      model: made from it.
      config: what the file's own config says, or {}.
      read: () -> the parameters, float32 on the host in nested dicts.
      preprocess: of its pictures.
      tokenizer: () -> the one that the model was trained with; None where its files lack it.
    """

    path: Path | str
    layout: str
    section: dict
    model: Any
    config: Mapping
    read: Callable[[], dict]
    preprocess: Preprocess
    tokenizer: Callable[[], Tokenizer | None]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """path -> shape of the parameters."""
        return {path: leaf.shape for path, leaf in by_path(parameter_shapes(self.model)).items()}


def open_pretrained(path: str | Path, model: str | Mapping | None = None) -> Opened:
    """Recognises a format and compares what it holds with the model that it describes.

    Args:
      path: see `weights.load`.
      model: name of a preset, or section of `models.create`, for a file that does not say.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: not a model that is read here; the message lists what is wrong.
    """
    name, at, step = str(path).rpartition("@")
    workdir, step = (Path(name), int(step)) if at and step.isdecimal() else (Path(path), None)
    if (workdir / "checkpoints").is_dir():
        return _open_workdir(workdir, step)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory.")
    file = _candidate(path) if path.is_dir() else path
    with open_tensors(file) as tensors:
        layout = _layout(tensors, file)
        config = _config(layout, file)
        shapes = {key: tensor.shape for key, tensor in tensors.items()}
        try:
            section = _section(layout, config, shapes, tensors, file, model)
            _check_depth(section)
            built = models.create(**section)
            preprocess = _preprocess(layout, config, built, file, model)
            leaves = by_path(parameter_shapes(built))
            entries = own.entries(leaves) if layout == "vlrep" else _entries(layout, built, shapes)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
            what = " ".join(str(error).split())
            raise ValueError(
                f"{file}: a value in the config beside it is of another kind than is expected, "
                f"such as a list in a number's place ({what})."
            ) from error
        ignored = _ignored(layout, shapes)
        problems = compare(
            entries,
            {path: leaf.shape for path, leaf in leaves.items()},
            {key: shape for key, shape in shapes.items() if key not in ignored},
        )
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        listing = "; ".join(problems[:_PROBLEMS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(f"{file} does not hold the model that it describes: {listing}.")

    def read():
        with open_tensors(file) as tensors:
            return read_values(tensors, entries, leaves)

    return Opened(
        file,
        layout,
        section,
        built,
        config,
        read,
        preprocess,
        lambda: _tokenizer(layout, config, built, file),
    )


def _candidate(directory: Path) -> Path:
    """The one file of weights in a directory."""
    names = sorted(p.name for p in directory.iterdir() if p.is_file())
    found = [name for name in names if name.endswith(".index.json")]
    shards = set()
    for index in found:
        shards |= set(weight_map(directory / index).values())
    aside = (".", *_NOT_WEIGHTS)
    found += [
        name
        for name in names
        if Path(name).suffix in SUFFIXES and name not in shards and not name.startswith(aside)
    ]
    if not found:
        raise FileNotFoundError(f"{directory} holds no file of weights, but {names[:10]}.")
    if len(found) > 1:
        raise ValueError(
            f"{directory} holds more than one file of weights: {', '.join(found)}. Name the one "
            f"that is meant, such as {directory / found[0]}."
        )
    return directory / found[0]


def _layout(tensors: Tensors, file: Path) -> str:
    if own.is_layout(file):
        return "vlrep"
    for name, module in (
        ("huggingface", huggingface),
        ("big_vision", big_vision),
        ("openclip", openclip),
        ("openai", openai),
    ):
        if module.is_layout(tensors):
            # OpenCLIP's CLIP has OpenAI's names; its config or its file name tells it.
            if name == "openai" and (
                (file.parent / "open_clip_config.json").is_file()
                or file.name.startswith("open_clip_")
            ):
                return "openclip"
            return name
    some = ", ".join(list(tensors)[:4])
    raise ValueError(
        f"{file} is not in a layout that is read here (Hugging Face CLIP and SigLIP, OpenCLIP, "
        f"OpenAI, big_vision SigLIP); it holds {len(tensors)} tensors: {some}..."
    )


def _config(layout, file) -> dict:
    """The config beside a file, or {}."""
    names = {"huggingface": "config.json", "openclip": "open_clip_config.json", "vlrep": own.CONFIG}
    name = names.get(layout)
    path = file.parent / name if name else None
    return read_json(path) if path and path.is_file() else {}


def _section(layout, config, shapes, tensors, file, model) -> dict:
    if layout == "vlrep":
        return own.section(config)
    if isinstance(model, str):
        if model not in models.PRESETS:
            raise ValueError(f"Unknown model {model!r}: {near(model, models.PRESETS)}.")
        return {"name": model}
    if model is not None:
        return plain(model)
    if layout == "big_vision":
        return big_vision.section(shapes)
    if config:
        read = huggingface if layout == "huggingface" else openclip
        return read.section(config, shapes)
    if layout == "huggingface":
        raise ValueError("there is no config.json beside it; copy it there, or say model=PRESET.")
    if openclip.is_layout(shapes):
        raise ValueError(
            "there is no open_clip_config.json beside it; copy it there, or say model=PRESET."
        )
    return openai.section_from_shapes(shapes, _activation(layout, tensors, file))


def _check_depth(section):
    """Raises ValueError where a config asks for more layers than anyone has: they are counted."""
    for side in ("image", "text", "decoder"):
        depth = plain(section.get(side) or {}).get("depth", 0)
        for layers in depth if isinstance(depth, list | tuple) else (depth,):
            if type(layers) is not int or layers > _MOST_LAYERS:
                raise ValueError(f"{side} has {layers!r} layers, not up to {_MOST_LAYERS}.")


def _activation(layout, tensors, file):
    """The activation of a CLIP that has no config: nothing in its shapes tells."""
    dtypes = {tensor.dtype.name for tensor in tensors.values()}
    marked = tensors.torchscript or any(key in tensors for key in openai.NOT_PARAMETERS[:3])
    if layout == "openai" and (marked or {"float16", "float32"} <= dtypes):
        return "quick_gelu"  # OpenAI's own archives
    assumed, other = ("gelu", "quick_gelu") if layout == "openclip" else ("quick_gelu", "gelu")
    preset = "ViT-B-32-quickgelu" if other == "quick_gelu" else "ViT-B-32"
    whose = "OpenCLIP's" if layout == "openclip" else "OpenAI's"
    warnings.warn(
        f"{file} does not say which activation it was trained with; taken for {assumed!r}, as in "
        f"{whose} files. If it was {other!r}, name the model, such as {preset}: "
        f"load(path, {preset!r}), or --preset={preset}.",
        stacklevel=4,
    )
    return assumed


def _preprocess(layout, config, built, file, model) -> Preprocess:
    """What the files say of pictures, or the way of the project whose layout it is."""
    image_size, _ = models.input_sizes(built)
    if layout == "vlrep":
        return Preprocess(image_size, frames=models.frames(built), **config["image"])
    if layout == "huggingface":
        path = file.parent / "preprocessor_config.json"
        if path.is_file():
            return from_huggingface(read_json(path))
        # Since transformers 5 a processor is written as one file.
        path = file.parent / "processor_config.json"
        if path.is_file() and "image_processor" in (found := read_json(path)):
            return from_huggingface(found["image_processor"])
    if layout == "openclip" and config.get("preprocess_cfg"):
        return from_openclip(config["preprocess_cfg"], image_size)
    rgb = "first" if layout == "huggingface" else "last"
    if isinstance(model, str):
        known = models.preprocessing(model)
        del known["tokenizer"]
        return Preprocess(image_size, rgb=rgb, **known)
    if built.bias_init is not None:
        halves = (0.5,) * 3
        return Preprocess(image_size, "squash", mean=halves, std=halves, rgb=rgb)
    center = "floor" if layout == "huggingface" else "round"
    return Preprocess(image_size, center=center, rgb=rgb)


def _tokenizer(layout, config, built, file) -> Tokenizer | None:
    """The tokenizer in the files; CLIP's own, which is no file, where the vocabulary is CLIP's."""
    is_clip = built.text.vocab_size == 49_408 and layout in ("openai", "openclip")
    if layout == "vlrep":
        path = file.parent / own.TOKENIZER
        return load_tokenizer(path) if path.is_file() else None
    try:
        options = openclip.tokenizer_options(config) if layout == "openclip" else None
        if options is None and is_clip:
            return ClipTokenizer()
        options = options or {}
        # All of SigLIP was trained on lower case, though SigLIP 2's files name Gemma's tokenizer.
        if built.bias_init is not None:
            options["lower_case"] = True
        return tokenizer_from_directory(file.parent, **options)
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{error} The model is loaded without a tokenizer.", stacklevel=3)
        return None


def _entries(layout, model, shapes) -> list[Entry]:
    if layout == "huggingface":
        found = huggingface.entries(model)
    elif layout == "big_vision":
        found = big_vision.entries(model, list(shapes))
    else:
        found = openclip.entries(model, list(shapes))  # a superset of OpenAI's
    # Files have these as [] or as [1], in one layout even.
    return [
        replace(e, form="flat" if shapes.get(e.key) == (1,) else "same")
        if e.path in _SCALARS
        else e
        for e in found
    ]


def _ignored(layout, shapes) -> set[str]:
    """Keys of what is no parameter."""
    ignored = {*huggingface.NOT_PARAMETERS, *openai.NOT_PARAMETERS}
    ignored |= {key for key in shapes if key.endswith(".attn_mask")}  # of TorchScript's modules
    ignored |= {key for key in shapes if key.endswith(resnet.COUNTER)}
    if layout == "big_vision" and big_vision.root(shapes):
        ignored |= {key for key in shapes if not key.startswith("params/")}  # the optimizer's
    return ignored


def parameter_shapes(model) -> Any:
    """The tree of a model's parameters, as shapes."""
    _, context_length = models.input_sizes(model)
    images = jax.ShapeDtypeStruct((1, *models.image_shape(model)), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, context_length), jnp.int32)
    # The key is made in it too: no device is asked for, so that files are converted without one.
    drawn = jax.eval_shape(lambda *inputs: model.init(jax.random.key(0), *inputs), images, tokens)
    return drawn["params"]


def by_path(tree) -> dict:
    """{path: leaf} of a tree."""
    return {path_of(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _open_workdir(workdir: Path, step: int | None) -> Opened:
    config = plain(read_config(workdir))
    section = config["model"]
    model = models.create(**section)
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise FileNotFoundError(f"{workdir}: there is no checkpoint yet.")
        step = steps[-1] if step is None else step
        found = by_path(checkpoints.parameter_shapes(step))
    needed = by_path(parameter_shapes(model))
    if {p: x.shape for p, x in found.items()} != {p: x.shape for p, x in needed.items()}:
        raise ValueError(f"{workdir}: its checkpoint of step {step} is not of its config.model.")

    image_size, _ = models.input_sizes(model)
    preprocess = Preprocess(image_size, frames=models.frames(model), **config["image"])

    def read():
        with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
            return checkpoints.parameters(step)

    return Opened(
        f"{workdir}, step {step}",
        "workdir",
        section,
        model,
        config,
        read,
        preprocess,
        lambda: load_tokenizer(workdir / "tokenizer.json"),
    )
