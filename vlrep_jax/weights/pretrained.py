"""`load` gives a published model ready for use; `save` writes one in another project's layout."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlrep_jax import models
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.tokenizers import Tokenizer
from vlrep_jax.scores import scores
from vlrep_jax.weights import writing
from vlrep_jax.weights.reading import open_pretrained

BATCH = (
    64  # pictures or texts embedded at once; the last batch is padded, so that one size compiles
)


@dataclass(frozen=True)
class Pretrained:
    """A model with its parameters and everything that its inputs need.

    Attributes:
      model: linen module, see `models.create`.
      params: its parameters, float32.
      preprocess: picture -> uint8[size, size, 3]; `preprocess.normalize` makes what a tower takes.
      tokenizer: (texts, context_length) -> int32[b, l]; None where the files hold none.
      config: the recipe's sections that describe it: `model`, `image`.
    """

    model: Any
    params: Any
    preprocess: Preprocess
    tokenizer: Tokenizer | None
    config: Mapping

    def encode_image(self, images: Sequence) -> np.ndarray:
        """Embeds pictures: paths, bytes, PIL images or uint8[h, w, 3].

        Returns:
          L2-normalised float32[n, d].

        Raises:
          BadImage: one cannot be decoded.
        """
        pixels = (self.preprocess.normalize(self.preprocess(image)) for image in images)
        return self._rows("encode_image", pixels, len(images))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts; L2-normalised float32[n, d].

        Raises:
          ValueError: the model's files hold no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(
                "This model's files hold no tokenizer: put its tokenizer.json (or spiece.model, or "
                "vocab.txt) beside them."
            )
        _, context_length = models.input_sizes(self.model)
        return self._rows("encode_text", self.tokenizer(list(texts), context_length), len(texts))

    def scores(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """What each text is worth to each picture: float32[n, m], see `scores.scores`."""
        scale, bias = self.model.apply({"params": self.params}, method="scale_and_bias")
        return scores(image, text, scale, bias)

    def _rows(self, method, inputs, count):
        if not count:
            raise ValueError("There is nothing to embed.")
        inputs, parts = iter(inputs), []
        for start in range(0, count, BATCH):
            part = np.stack([next(inputs) for _ in range(min(BATCH, count - start))])
            size = BATCH if count > BATCH else len(part)
            padding = ((0, size - len(part)),) + ((0, 0),) * (part.ndim - 1)
            embedded = self._encoders[method](self.params, np.pad(part, padding))
            parts.append(np.asarray(embedded)[: len(part)])
        return np.concatenate(parts)

    @cached_property
    def _encoders(self) -> dict[str, Callable]:
        def of(method):
            return jax.jit(lambda p, x: self.model.apply({"params": p}, x, method=method))

        return {method: of(method) for method in ("encode_image", "encode_text")}


def load(path: str | Path, model: str | Mapping | None = None) -> Pretrained:
    """Loads a model from its files, without torch and without running anything in them.

    >>> clip = weights.load("clip-vit-base-patch32/")
    >>> image, text = clip.encode_image(["cat.jpg"]), clip.encode_text(["a cat", "a dog"])
    >>> clip.scores(image, text)

    Args:
      path: a Hugging Face directory of CLIP or SigLIP (config.json and safetensors, in one file or
        several), an OpenCLIP directory or file (open_clip_config.json beside it), an OpenAI `.pt`
        (state dict or TorchScript archive), a big_vision SigLIP `.npz`, what a run of this
        library leaves as DIR/model/, or its work directory ('DIR', its newest checkpoint, or
        'DIR@STEP'). Of a directory with several files of weights, name the file.
      model: name in models.PRESETS, or section of `models.create`: the architecture of a file that
        does not say.

    Returns:
      The model; its parameters are on the default device.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: not a model that is read here, or a damaged file; the message lists what is wrong.

    Warns:
      UserWarning: weights that are NaN or infinite; an activation that no file tells.
    """
    loaded = _on_host(path, model)
    # On CPU it takes the arrays over; `jnp.asarray` would copy them.
    return replace(loaded, params=jax.tree.map(jax.device_put, loaded.params))


def _on_host(path, model=None) -> Pretrained:
    """As `load`, its parameters NumPy arrays: no device is asked for."""
    opened = open_pretrained(path, model)
    sections = {"model": opened.section, "image": opened.preprocess.section()}
    parts = opened.read(), opened.preprocess, opened.tokenizer(), sections
    return Pretrained(opened.model, *parts)


def save(path: str | Path, pretrained: Pretrained, layout: str) -> None:
    """Writes a model for another project, whole or not at all; tensors go out one by one.

    Args:
      path: for 'huggingface' and 'openclip' a directory, with the config, preprocessor and
        tokenizer files that `from_pretrained` and OpenCLIP's `local-dir:` look for; for 'openai' a
        `.pt` and for 'big_vision' an `.npz`, or a directory to put it in.
      pretrained: as `load` gives it; its tokenizer may be None, and is then not written.
      layout: 'huggingface', 'openclip', 'openai' or 'big_vision'; or 'vlrep', a directory of this
        library's own, which has a place for every model.

    Raises:
      FileExistsError: there is something already.
      ValueError: an unknown layout, or one that cannot express this model; the message says why.
    """
    writing.write(Path(path), layout, pretrained)


def convert(source: str | Path, path: str | Path, layout: str, model=None) -> None:
    """`save` of what `load` finds, on the host alone: accelerators are left to others.

    Args:
      source, model: as `path` and `model` of `load`.
      path, layout: as in `save`.
    """
    save(path, _on_host(source, model), layout)


def save_run(workdir: Path, step: int, path: Path) -> None:
    """Writes the parameters of a run's checkpoint in the layout 'vlrep', in place of older ones.

    They are the moving average where the run keeps one, and never leave the host.

    Raises:
      FileNotFoundError, ValueError: there is no such checkpoint, or it is damaged.
    """
    trained = _on_host(f"{workdir}@{step}")
    shutil.rmtree(path, ignore_errors=True)
    save(path, trained, "vlrep")
