"""A model with its parameters, tokenizer and devices, as functions from data to embeddings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np

from vlrep_jax.models import FusionEncoder
from vlrep_jax.parallel import batch_sharding, put_batch, replicated

# Methods of models and what a batch holds for each.
_INPUTS = {
    "encode_image": ("image",),
    "encode_text": ("text",),
    "image_tokens": ("image",),
    "text_tokens": ("text",),
    "judge": ("image_tokens", "text_tokens"),
    "answer": ("image", "text"),
}


@dataclass(frozen=True)
class Encoder:
    """Embeds pictures and texts in batches split over the devices of a mesh.

    Attributes:
      model: made by `models.create`.
      compiled: name of a method of it -> compiled (params, batch) -> (rows, index), see
        `make_encoder`.
      params: of the model.
      tokenizer: (texts, context_length) -> int32[b, l].
      context_length: tokens of a text.
      batch_size: texts in a batch, over all devices.
      mesh: with the axes of `parallel.BATCH_AXES`.
    """

    model: Any
    compiled: Callable
    params: Any
    tokenizer: Callable
    context_length: int
    batch_size: int
    mesh: jax.sharding.Mesh

    def images(self, batches: Iterable[Mapping[str, np.ndarray]]) -> np.ndarray:
        """Embeds this process's part of batches of `image` and `index`.

        Returns:
          L2-normalised float32[n, d] of all processes' rows in order; rows of index -1 are padding,
          left out.
        """
        return self._rows("encode_image", batches)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """L2-normalised float32[n, d] of n texts; every process passes all of them."""
        return self._rows("encode_text", self._text_batches(texts))

    def image_tokens(self, batches: Iterable[Mapping[str, np.ndarray]]):
        """What `judge` takes of pictures, in the order of `images`.

        Raises:
          ValueError: the model reads no pairs.
        """
        self._check("judges pairs", answers=False)
        return self._rows("image_tokens", batches)[1]

    def text_tokens(self, texts: Sequence[str]):
        """What `judge` takes of texts, in their order."""
        return self._rows("text_tokens", self._text_batches(texts))[1]

    def judge(self, image_tokens, text_tokens, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """What the fusion layers say of pairs, float32[p, 1 or 2]: see `FusionEncoder.judge`.

        Args:
          image_tokens, text_tokens: of n pictures and m texts.
          images, texts: int32[p], which of them make each pair; every process passes all.
        """

        def batches():
            for index, own in self._parts(len(images)):
                index = index[own]
                yield {
                    "image_tokens": _taken(image_tokens, images[index]),
                    "text_tokens": _taken(text_tokens, texts[index]),
                    "index": index,
                }

        return self._rows("judge", batches())

    def scale(self) -> float:
        """Of similarities as logits."""
        return float(self.model.apply({"params": self.params}, method="scale_and_bias")[0])

    def answers(
        self, batches: Iterable[Mapping], questions: Sequence[str], *, blank: bool = False
    ) -> tuple[Sequence[str], np.ndarray]:
        """What the model answers to questions[i] about picture i.

        Args:
          batches: as of `images`.
          blank: every picture is the mean colour of pictures instead.

        Returns:
          Its a answers, and logits float32[n, a].

        Raises:
          ValueError: the model has no answers.
        """
        self._check("answers questions", answers=True)

        def asked():
            for batch in batches:
                texts = [questions[i] if i >= 0 else "" for i in batch["index"]]
                image = batch["image"]
                yield {
                    # Float pixels count as normalised.
                    "image": np.zeros(image.shape, np.float32) if blank else image,
                    "text": self.tokenizer(texts, self.context_length),
                    "index": batch["index"],
                }

        return self.model.answers, self._rows("answer", asked())

    def _check(self, what, answers):
        model = self.model
        if not isinstance(model, FusionEncoder) or bool(model.answers) != answers:
            kind = type(model).__name__
            held = f" of {len(model.answers)} answers" if getattr(model, "answers", ()) else ""
            raise ValueError(
                f"A model that {what} is needed, a FusionEncoder with{'' if answers else 'out'} "
                f"answers; this is a {kind}{held}."
            )

    def _parts(self, count):
        """(index of each row of a batch, -1 for padding; the slice of this process) in turn."""
        size, process, processes = self.batch_size, jax.process_index(), jax.process_count()
        own = slice(process * size // processes, (process + 1) * size // processes)
        for start in range(0, count, size):
            index = np.arange(start, start + size, dtype=np.int32)
            yield np.where(index < count, index, -1), own

    def _text_batches(self, texts):
        for index, own in self._parts(len(texts)):
            part = [texts[i] if i >= 0 else "" for i in index]
            yield {"text": self.tokenizer(part, self.context_length)[own], "index": index[own]}

    def _rows(self, method, batches):
        """Runs a method over batches, one ahead of what is fetched, and drops the padding."""
        run, names = self.compiled(method), (*_INPUTS[method], "index")
        parts, running = [], None
        for batch in batches:
            sent = put_batch({name: batch[name] for name in names}, self.mesh)
            started = run(self.params, sent)
            if running is not None:
                parts.append(jax.device_get(running))
            running = started
        if running is None:
            raise ValueError("There is nothing to embed.")
        parts.append(jax.device_get(running))
        kept = [_taken(rows, index >= 0) for rows, index in parts]
        return jax.tree.map(lambda *x: np.concatenate(x), *kept)


def _taken(tree, rows):
    return jax.tree.map(lambda x: x[rows], tree)


def make_encoder(model, normalize: Callable, mesh, *, tokenizer, context_length, batch_size):
    """params -> `Encoder`; all encoders made by it share their compiled functions."""

    @cache
    def compiled(method):
        def encode(params, batch):
            inputs = [
                normalize(batch[name]) if name == "image" else batch[name]
                for name in _INPUTS[method]
            ]
            return model.apply({"params": params}, *inputs, method=method), batch["index"]

        # Gathered, so that every process can read every row. The parameters stay as they are laid.
        return jax.jit(
            encode, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh)
        )

    return lambda params: Encoder(
        model, compiled, params, tokenizer, context_length, batch_size, mesh
    )
