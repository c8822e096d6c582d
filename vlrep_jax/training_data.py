"""From a config to its training batches, for any part of a batch and without a model or devices."""

import numpy as np
from ml_collections import ConfigDict

from vlrep_jax.build import bind, build
from vlrep_jax.data.caption_choice import CAPTIONS
from vlrep_jax.data.pipeline import Batches, train_batches
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.data.tokenizers import Tokenizer
from vlrep_jax.data.transforms import TRANSFORMS


def make_transform(config: ConfigDict, image_size: int):
    """The training transform of a config, (Picture or uint8[h, w, 3], rng) -> pixels.

    Raises:
      ValueError: no such transform, or an option that it does not take.
    """
    transform = bind(TRANSFORMS, config.data.transform, "transform", size=image_size)
    try:  # nested options have no table to be checked against; now is sooner than in a thread
        transform(np.zeros((256, 4, 3), np.uint8), np.random.default_rng(0))
    except TypeError as error:
        raise ValueError(f"config.data.transform: {error}.") from None
    return transform


def make_train_batches(
    config: ConfigDict,
    tokenizer: Tokenizer,
    image_size: int,
    context_length: int,
    *,
    part: tuple[int, int],
    source=None,
    **changed,
) -> Batches:
    """The rows of one process in all batches of a config's training data.

    Args:
      config: of a recipe.
      tokenizer: of `make_tokenizer`, or that of the parameters to begin with.
      image_size, context_length: what the model takes.
      part: number of the process, and how many there are.
      source: what `config.data.source` describes, where it is open already.
      changed: arguments of `pipeline.train_batches` that are not to be the config's.

    Raises:
      ValueError: what the data or a section of `config.data` are not as expected.
    """
    data = config.data
    options = {
        "num_threads": data.num_threads,
        "prefetch": data.prefetch,
        "cache": data.cache,
        "num_workers": data.num_workers,
    }
    return train_batches(
        build(SOURCES, data.source, "source") if source is None else source,
        transform=make_transform(config, image_size),
        caption=bind(CAPTIONS, data.caption, "caption"),
        tokenizer=tokenizer,
        context_length=context_length,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=part[0],
        process_count=part[1],
        captions_per_image=data.captions_per_image,
        answers=config.model.get("answers", ()),
        max_bad_fraction=data.max_bad_fraction,
        decoder=data.decoder,
        on_change=data.on_change,
        **options | changed,
    )
