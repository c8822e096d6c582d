"""The data of a recipe for the tools: what its training gets, without its devices or parameters."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vlrep_jax import models, recipes
from vlrep_jax.build import build, plain
from vlrep_jax.config_keys import check_keys
from vlrep_jax.data.pipeline import Batches
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.data.tokenizers import Tokenizer
from vlrep_jax.experiment import check_vocabulary, make_tokenizer
from vlrep_jax.initial import find_initial
from vlrep_jax.training_data import make_train_batches


@dataclass(frozen=True)
class RecipeData:
    """What a recipe's training batches are made with.

    Attributes:
        config: of the recipe.
        tokenizer: its own, or that of the parameters it begins with.
        image_size, context_length: what its model takes.
    """

    config: ConfigDict
    tokenizer: Tokenizer
    image_size: int
    context_length: int

    def open_source(self):
        """What `config.data.source` describes."""
        return build(SOURCES, self.config.data.source, "source")

    def batches(self, rows: int, **changed) -> Batches:
        """The first so many rows, of `rows_near`, of each training batch.

        Args:
            changed: as of `make_train_batches`.
        """
        return make_train_batches(
            self.config,
            self.tokenizer,
            self.image_size,
            self.context_length,
            # As the first of so many hosts would get it: the other rows need not be made.
            part=(0, self.config.batch_size // rows),
            **changed,
        )

    def rows_near(self, count: int) -> int:
        """The most rows up to `count` that hold whole pictures and divide the batch evenly."""
        each, size = self.config.data.captions_per_image, self.config.batch_size
        return max([n for n in range(each, count + 1, each) if size % n == 0] or [each])


def open_recipe(config: ConfigDict) -> RecipeData:
    """Finds out what a recipe's data are made with.

    Raises:
        ValueError: a key or name that nothing knows, or a tokenizer that the model cannot take.
    """
    check_keys(config)
    model = models.create(**{"name": None, **plain(config.model)})
    image_size, context_length = models.input_sizes(model)
    if config.init_from:
        images = jnp.zeros((1, *models.image_shape(model)), jnp.float32)
        texts = jnp.zeros((1, context_length), jnp.int32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images, texts)["params"]
        initial = find_initial(config.init_from, shapes, model, skip=config.init_skip)
        tokenizer = initial.tokenizer(config)
    else:
        tokenizer = make_tokenizer(config)
    check_vocabulary(tokenizer, model)
    return RecipeData(config, tokenizer, image_size, context_length)


def plain_recipe(section: dict) -> ConfigDict:
    """A recipe that trains ViT-B/32 as CLIP has it on a source, for tools that are given no other.

    Args:
        section: of SOURCES.
    """
    config = recipes.clip_paper("ViT-B-32", peak=1e-3)
    config.data.source = section
    return config.lock()
