"""From a config to what it describes: model, optimizer, compiled step, data, evaluations."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vlrep_jax import models, optim
from vlrep_jax.adversarial import ADVERSARIAL
from vlrep_jax.build import bind, build, check_options, find, plain
from vlrep_jax.collectives import global_sum
from vlrep_jax.config_keys import check_keys
from vlrep_jax.data.caption_choice import CAPTIONS, of_source
from vlrep_jax.data.pipeline import Batches
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.data.tokenizers import TOKENIZERS, Tokenizer, train_bpe
from vlrep_jax.encoder import Encoder, make_encoder
from vlrep_jax.evaluation import Evaluations
from vlrep_jax.losses import LOSSES, answering, captioning, draw_negatives, matching
from vlrep_jax.objectives import answered, captioned, contrastive, freeze, fused, normalizer
from vlrep_jax.parallel import (
    BATCH_AXES,
    batch_sharding,
    check_divides,
    jit_step,
    make_mesh,
    on_own_rows,
    per_shard,
    pmap_state_sharding,
    pmap_step,
    put_batch,
    put_pmap_batch,
    replicated,
    shardings,
)
from vlrep_jax.rules import match_rules
from vlrep_jax.train import TrainState, WatchedState, init_state, make_train_step
from vlrep_jax.training_data import make_train_batches

EVAL_BATCH = 256  # pictures or texts; large enough to fill a device, small beside a training step


@dataclass(frozen=True)
class Experiment:
    """What a config describes, built; nothing has run and no data has been read.

    Attributes:
      config: locked.
      model: linen module. image_size, context_length: what it takes.
      preprocess: makes the pictures that it is evaluated on.
      mesh: of all devices.
      schedule: step -> learning rate.
      init: () -> state before the first step, laid out over the devices.
      abstract_state: its shapes, dtypes and shardings.
      abstract_batch: the same of what `step` takes in training.
      step: compiled (state, batch) -> (state, metrics).
      put: host batch -> what `step` takes.
    """

    config: ConfigDict
    model: object
    image_size: int
    context_length: int
    preprocess: Preprocess
    mesh: jax.sharding.Mesh
    schedule: Callable
    init: Callable[[], TrainState | WatchedState]
    abstract_state: TrainState | WatchedState
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    step: Callable
    put: Callable

    def summary(self) -> str:
        """One line on what is about to train where."""
        size = optim.parameter_count(self.abstract_state.params)
        kind = self.mesh.devices.flat[0].device_kind
        return (
            f"{size:,} parameters, {self.mesh.size} x {kind} ({self.config.parallel.wiring}), "
            f"batch {self.config.batch_size:,}, {self.config.steps:,} steps. First it compiles, or "
            f"finds its programs in {_cache(self.config) or 'no cache'}."
        )

    def encoder(self, tokenizer: Tokenizer) -> Callable[..., Encoder]:
        """params -> Encoder."""
        devices = self.mesh.size
        return make_encoder(
            self.model,
            _normalizer(self.config),
            self.mesh,
            tokenizer=tokenizer,
            context_length=self.context_length,
            batch_size=-(-EVAL_BATCH // devices) * devices,
        )

    def train_batches(self, tokenizer: Tokenizer, part: tuple[int, int] | None = None) -> Batches:
        """The rows of one process in all batches of the training data: by default this one's.

        Args:
          part: number of a process, and how many there are.
        """
        index, count = part or (jax.process_index(), jax.process_count())
        config = self.config
        check_divides(config.batch_size, jax.device_count(), config.chunks, config.matching_every)
        sizes = self.image_size, self.context_length
        return make_train_batches(config, tokenizer, *sizes, part=(index, count))

    def evaluations(self) -> Evaluations:
        """The config's evaluations with their data opened."""
        devices = self.mesh.size
        return Evaluations(
            self.config.evals,
            preprocess=self.preprocess,
            batch_size=-(-EVAL_BATCH // devices) * devices,
            mesh=self.mesh,
        )


def make_experiment(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Experiment:
    """Builds what a config describes.

    Args:
      config: of a recipe.
      devices: those of the mesh, which may be of a machine that is not here; None for all here.

    Raises:
      ValueError: a key or name that nothing knows, or values that do not fit together.
    """
    check_keys(config)
    model = models.create(**{"name": None, **plain(config.model)})
    image_size, context_length = models.input_sizes(model)
    try:
        preprocess = Preprocess(image_size, frames=models.frames(model), **plain(config.image))
    except ValueError as error:
        raise ValueError(f"config.image: {error}") from None
    mesh = make_mesh(
        config.parallel.data, config.parallel.fsdp, devices, slices=config.parallel.slices
    )
    pmapped = config.parallel.wiring == "pmap"

    image_shape = models.image_shape(model)
    images = jnp.zeros((1, *image_shape), jnp.float32)
    tokens = jnp.zeros((1, context_length), jnp.int32)
    init_params = lambda key: model.init(key, images, tokens)["params"]  # noqa: E731
    params = jax.eval_shape(init_params, jax.random.key(0))
    schedule = build(optim.SCHEDULES, config.schedule, "schedule", total_steps=config.steps)
    optimizer = plain(config.optimizer)
    find(optim.OPTIMIZERS, optimizer.get("name"), "optimizer")
    tx = optim.make_optimizer(
        schedule=schedule,
        params=params,
        freeze=[(pattern, True) for pattern in config.freeze],
        clip_norm=config.clip_norm or None,
        **optimizer,
    )
    axis_name = "data" if pmapped else BATCH_AXES

    policy = config.spikes.policy
    init = partial(
        init_state,
        init_params,
        tx,
        config.seed,
        ema=config.ema_decay > 0,
        spike_window=0 if policy == "off" else config.spikes.window,
    )
    shapes = jax.eval_shape(init)
    if pmapped:
        layout = jax.tree.map(lambda _: pmap_state_sharding(), shapes)
        place = {}
    else:
        layout = shardings(shapes, mesh, [tuple(rule) for rule in config.parallel.rules])
        place = {"place": partial(on_own_rows, mesh=mesh, layout=layout.params)}
        if isinstance(layout, WatchedState):  # small, and read by the host
            layout = layout._replace(losses=replicated(mesh))
    _check_parts(config, model, params)

    def over_shards(loss, **options):
        if pmapped:
            return partial(loss, axis_name=axis_name)
        return per_shard(loss, mesh, **{"batched": 2, **options})

    if isinstance(model, models.TextToImage):
        loss = bind(ADVERSARIAL, config.loss, "loss of a generator")
        objective = loss(model, axis_name if pmapped else None)
    else:
        objective = _objective_of(config, over_shards)(
            models.synchronized(model, partial(global_sum, axis_name=axis_name)),
            normalize=_normalizer(config),
            chunks=config.chunks,
            microbatch=config.microbatch,
            **place,
        )
    step = make_train_step(
        freeze(objective, config.freeze),
        tx,
        seed=config.seed,
        axis_name=axis_name if pmapped else None,
        project=_projection(config, params),
        ema_decay=config.ema_decay,
        spike_threshold=config.spikes.threshold,
        keeps_spikes=policy == "warn",
    )
    return Experiment(
        config=config,
        model=model,
        image_size=image_size,
        context_length=context_length,
        preprocess=preprocess,
        mesh=mesh,
        schedule=schedule,
        init=jax.jit(init, out_shardings=layout),
        abstract_state=jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, layout
        ),
        abstract_batch=_abstract_batch(config, image_shape, context_length, mesh),
        step=pmap_step(step) if pmapped else jit_step(step, mesh, layout),
        put=put_pmap_batch if pmapped else partial(put_batch, mesh=mesh),
    )


def _objective_of(config: ConfigDict, over_shards: Callable) -> Callable:
    """What the config trains a model for: objective_of(model, ...) with its losses bound.

    Args:
      over_shards: (loss, **options of `per_shard`) -> the loss over the global batch.
    """
    contrast = over_shards(bind(LOSSES, config.loss, "loss"))
    if config.model.get("answers"):
        return partial(answered, answering=over_shards(answering))
    captions = over_shards(captioning) if config.captioning_weight else None
    if config.matching_weight:
        every = config.matching_every
        return partial(
            fused,
            loss=contrast,
            draw=over_shards(partial(draw_negatives, every=every), gives_rows=True),
            matching=over_shards(matching),
            captioning=captions,
            weight=config.matching_weight,
            captioning_weight=config.captioning_weight,
            every=every,
        )
    if captions is not None:
        weight = config.captioning_weight
        return partial(captioned, loss=contrast, captioning=captions, weight=weight)
    return partial(contrastive, loss=contrast)


def keep_programs(config: ConfigDict) -> None:
    """Has JAX keep what it compiles, for the next run, unless it was told where to before."""
    if config.compilation_cache and jax.config.jax_compilation_cache_dir is None:
        path = os.path.expanduser(config.compilation_cache)
        jax.config.update("jax_compilation_cache_dir", path)


def _cache(config):
    """Where compiled programs are kept, as it was given."""
    used, own = jax.config.jax_compilation_cache_dir, config.compilation_cache
    return own if used == os.path.expanduser(own) else used


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer that a config names; 'bpe' is trained on the training captions.

    Raises:
      ValueError: an unknown tokenizer or option.
    """
    section = plain(config.tokenizer)
    if section.get("name") == "bpe":
        check_options(train_bpe, set(section) - {"name"}, "tokenizer 'bpe'")
        return train_bpe(_training_texts(config), section.get("vocab_size", 2000))
    return build(TOKENIZERS, section, "tokenizer")


def check_vocabulary(tokenizer: Tokenizer, model) -> None:
    """Raises ValueError where a tokenizer's ids are not what a model takes them for."""
    rows = models.vocab_size(model)
    text = getattr(model, "text", model)
    if getattr(text, "pool", "") == "eot" and tokenizer.eos_id != tokenizer.vocab_size - 1:
        raise ValueError(
            f"The text tower pools at the largest id, but this tokenizer's end of text is "
            f"{tokenizer.eos_id} of {tokenizer.vocab_size}: set config.model.text.pool='last', or "
            "use the tokenizer 'clip' or 'bpe'."
        )
    reads_padding = isinstance(model, models.FusionEncoder) or getattr(text, "pool", "") == "cls"
    for key, matters in (("eos_id", getattr(text, "pool", "") == "eos"), ("pad_id", reads_padding)):
        if matters and getattr(text, key) != getattr(tokenizer, key):
            raise ValueError(
                f"The text tower has {key}={getattr(text, key)}, but this tokenizer's is "
                f"{getattr(tokenizer, key)}: set config.model.text.{key}."
            )
    if isinstance(model, models.SharedEncoder) and tokenizer.pad_id != 0:
        raise ValueError(
            f"The shared encoder takes id 0 for padding, but this tokenizer pads with "
            f"{tokenizer.pad_id}: use 'clip' or 'bpe'."
        )
    if tokenizer.vocab_size > rows:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocab_size} ids, but the model's vocab_size is {rows}: "
            "set it to as many."
        )


def _check_parts(config, model, params):
    """Raises ValueError where a part of the model would be trained otherwise than it looks."""
    kind, answers = type(model).__name__, len(getattr(model, "answers", ()))
    writes = isinstance(model, models.CoCa) or (getattr(model, "captions", False) and not answers)
    if writes != bool(config.captioning_weight):
        raise ValueError(
            f"config.captioning_weight={config.captioning_weight} with {kind}: a "
            "CoCa's decoder learns by it (2.0 in the paper), and a FusionEncoder with captions; "
            "other models write none (0.0)."
        )
    judges = isinstance(model, models.FusionEncoder) and not answers
    if judges != bool(config.matching_weight):
        raise ValueError(
            f"config.matching_weight={config.matching_weight} with {kind} of {answers} answers: "
            "fusion layers learn by it to judge pairs (1.0 in the paper); those that answer "
            "questions, and other models, do not (0.0)."
        )
    if config.matching_every > 1 and not judges:
        raise ValueError(
            f"config.matching_every={config.matching_every} with {kind}: it is for models that "
            "learn by config.matching_weight."
        )
    if isinstance(model, models.TextToImage):
        if not {"image/.*", "text/.*"} <= set(config.freeze) or not config.init_from:
            raise ValueError(
                "A generator draws from the text embeddings of a trained model, which stays as it "
                "is: set config.init_from=PATH, and config.freeze=('image/.*', 'text/.*', ...)."
            )
        if config.chunks > 1 or any(config.microbatch.values()):
            raise ValueError(
                "A generator trains on the whole batch: with config.chunks=1 and config.microbatch "
                "of 0."
            )
    running = jax.tree.leaves(optim.running_statistics(params))
    frozen = jax.tree.leaves(match_rules([(rule, True) for rule in config.freeze], params, False))
    if models.trains_batch_norm(model) and any(map(min, running, frozen)):
        raise ValueError(
            "config.freeze holds running statistics that training would move: set "
            "config.model.image.batch_norm='frozen' too."
        )


def _training_texts(config, draws: int = 2, most: int = 200_000):
    """Captions as training draws them, templates and all, for a tokenizer to learn from."""
    source = build(SOURCES, config.data.source, "source")
    if not len(source):
        raise ValueError("config.data.source has no samples.")
    choose = of_source(source, bind(CAPTIONS, config.data.caption, "caption"))
    rng = np.random.default_rng(config.seed)
    step = -(-len(source) * draws // most)
    for start in range(0, len(source), 1024 * step):
        indices = range(start, min(start + 1024 * step, len(source)), step)
        for sample in source.__getitems__(indices):
            for _ in range(draws):
                yield choose(sample, rng)


def _abstract_batch(config, image_shape, context_length, mesh):
    """What `train_batches` gives, once it is on the devices of a jitted step."""
    rows = {
        "image": (image_shape, jnp.uint8),
        "text": ((context_length,), jnp.int32),
        "pair_ids": ((), jnp.int32),
    }
    if config.model.get("answers"):
        rows["answers"] = (len(config.model.answers),), jnp.float32
    return {
        name: jax.ShapeDtypeStruct(
            (config.batch_size, *shape), dtype, sharding=batch_sharding(mesh)
        )
        for name, (shape, dtype) in rows.items()
    }


def _normalizer(config):
    return normalizer(config.image.mean, config.image.std)


def _projection(config, params):
    """What is done to the parameters after every update: the learned scale stays in its range."""
    if "logit_scale" not in params or not config.max_logit_scale:
        return lambda params: params
    bounds = (None, math.log(config.max_logit_scale))
    return partial(optim.clamp, rules=[("^logit_scale", bounds)])
