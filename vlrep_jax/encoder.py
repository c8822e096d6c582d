"""A model with its parameters, tokenizer and devices, as two functions from data to embeddings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from vlrep_jax.parallel import batch_sharding, put_batch, replicated


@dataclass(frozen=True)
class Encoder:
    """Embeds pictures and texts in batches split over the devices of a mesh.

    Attributes:
      encode_image, encode_text: compiled (params, batch) -> (rows, index), see `make_encoder`.
      params: of the model.
      tokenizer: (texts, context_length) -> int32[b, l].
      context_length: tokens of a text.
      batch_size: texts in a batch, over all devices.
      mesh: with the axes of `parallel.BATCH_AXES`.
    """

    encode_image: Callable
    encode_text: Callable
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
        sent = ({name: batch[name] for name in ("image", "index")} for batch in batches)
        return self._rows(self.encode_image, sent)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """L2-normalised float32[n, d] of n texts; every process passes all of them."""
        size, process, count = self.batch_size, jax.process_index(), jax.process_count()
        own = slice(process * size // count, (process + 1) * size // count)

        def batches():
            for start in range(0, len(texts), size):
                part = list(texts[start : start + size])
                index = np.full(size, -1, np.int32)
                index[: len(part)] = np.arange(len(part))
                tokens = self.tokenizer(part + [""] * (size - len(part)), self.context_length)
                yield {"text": tokens[own], "index": index[own]}

        return self._rows(self.encode_text, batches())

    def _rows(self, encode, batches):
        """Runs `encode` over batches, one ahead of what is fetched, and drops the padding."""
        parts, running = [], None
        for batch in batches:
            started = encode(self.params, put_batch(batch, self.mesh))
            if running is not None:
                parts.append(jax.device_get(running))
            running = started
        if running is None:
            raise ValueError("There is nothing to embed.")
        parts.append(jax.device_get(running))
        return np.concatenate([rows[index >= 0] for rows, index in parts])


def make_encoder(model, normalize: Callable, mesh, *, tokenizer, context_length, batch_size):
    """params -> `Encoder`; all encoders made by it share their compiled functions."""

    def of(method, prepare, name):
        def encode(params, batch):
            rows = model.apply({"params": params}, prepare(batch[name]), method=method)
            return rows, batch["index"]

        # Gathered, so that every process can read every row. The parameters stay as they are laid.
        return jax.jit(
            encode, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh)
        )

    encode_image = of("encode_image", normalize, "image")
    encode_text = of("encode_text", lambda tokens: tokens, "text")
    return lambda params: Encoder(
        encode_image, encode_text, params, tokenizer, context_length, batch_size, mesh
    )
