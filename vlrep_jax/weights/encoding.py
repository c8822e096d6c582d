"""A published model as the `Encoder` that evaluations, indexes and reports take."""

import jax

from vlrep_jax import models
from vlrep_jax.encoder import Encoder, make_encoder
from vlrep_jax.objectives import normalizer
from vlrep_jax.parallel import make_mesh, replicated
from vlrep_jax.weights.pretrained import Pretrained


def encoder_of(loaded: Pretrained, batch_size: int) -> Encoder:
    """Embeds in batches over all devices of this process.

    Args:
      batch_size: at least so many pictures or texts at once; all devices get equally many.
    """
    mesh = make_mesh(devices=jax.local_devices())
    make = make_encoder(
        loaded.model,
        normalizer(loaded.preprocess.mean, loaded.preprocess.std),
        mesh,
        tokenizer=loaded.tokenizer,
        context_length=models.input_sizes(loaded.model)[1],
        batch_size=-(-batch_size // mesh.size) * mesh.size,
    )
    return make(jax.device_put(loaded.params, replicated(mesh)))
