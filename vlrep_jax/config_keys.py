"""Whether a config is one that `experiment` can build from, as far as its keys and values say."""

import json

from ml_collections import ConfigDict

from vlrep_jax import recipes, spikes
from vlrep_jax.build import near, plain
from vlrep_jax.retention import Keep

WIRINGS = ("jit", "pmap")
# What a value may be where the default is of the first of these types.
KINDS = ((bool,), (int,), (float, int), (str,), (ConfigDict,), (tuple, list))
COUNTS = (
    "batch_size",
    "checkpoint_every",
    "chunks",
    "eval_every",
    "log_every",
    "matching_every",
    "max_skipped",
    "steps",
)


def check_keys(config: ConfigDict) -> None:
    """Raises ValueError where a config's keys are not those of `recipes.base`, or have no value."""
    known = recipes.base()
    _check_section(config, known, "config")
    for name in recipes.FIXED_SECTIONS:
        _check_section(config[name], known[name], f"config.{name}")
    if config.parallel.wiring not in WIRINGS:
        raise ValueError(
            f"Unknown wiring {config.parallel.wiring!r}: {near(config.parallel.wiring, WIRINGS)}."
        )
    try:
        json.dumps(plain(config))
    except TypeError as error:
        raise ValueError(f"config holds a value that is not plain: {error}.") from None
    for key in COUNTS:
        if config[key] < 1:
            raise ValueError(f"config.{key}={config[key]} must be at least 1.")
    weights = ("captioning_weight", "matching_weight")
    for key in ("seed", "max_logit_scale", "clip_norm", *weights):
        if config[key] < 0:
            raise ValueError(f"config.{key}={config[key]} must not be negative.")
    Keep(config.keep_checkpoints, config.keep_every, **config.keep_best)
    metric = config.keep_best.metric
    if metric and not any(metric.startswith(f"{name}/") for name in config.evals):
        raise ValueError(
            f"config.keep_best.metric={metric!r} must be NAME/METRIC with NAME among config.evals: "
            f"{', '.join(config.evals) or 'none'}."
        )
    if config.on_save_error not in ("continue", "stop"):
        raise ValueError(
            f"config.on_save_error={config.on_save_error!r} must be 'continue' or 'stop'."
        )
    for key, seconds in config.cluster.items():
        if seconds < 1:
            raise ValueError(f"config.cluster.{key}={seconds} must be at least 1 second.")
    policy, threshold, window = (config.spikes[k] for k in ("policy", "threshold", "window"))
    if policy not in spikes.POLICIES:
        raise ValueError(f"config.spikes.policy={policy!r}: {near(policy, spikes.POLICIES)}.")
    if threshold <= 0:
        raise ValueError(f"config.spikes.threshold={threshold} must be above 0.")
    if window < 8:
        raise ValueError(
            f"config.spikes.window={window} must be at least 8 losses; fewer say nothing."
        )
    for key, size in config.microbatch.items():
        if size < 0:
            raise ValueError(f"config.microbatch.{key}={size} must not be negative; 0 is all rows.")
    for key in ("freeze", "clip_norm", "schedule", "params"):
        if key in config.optimizer:
            raise ValueError(f"config.optimizer has no key {key!r}; {key} stands beside it.")
    if not 0 <= config.ema_decay < 1:
        raise ValueError(f"config.ema_decay={config.ema_decay} must be in [0, 1).")


def _check_section(section, known, label):
    for key in section:
        if key not in known:
            raise ValueError(f"{label} has no key {key!r}; {near(key, known)}.")
    for key, default in known.items():
        if key not in section:
            raise ValueError(f"{label} lacks the key {key!r}; begin with recipes.base().")
        kinds = next((kinds for kinds in KINDS if isinstance(default, kinds[0])), (object,))
        if not isinstance(section[key], kinds) or isinstance(section[key], bool) != (
            kinds[0] is bool
        ):
            raise ValueError(
                f"{label}.{key}={section[key]!r} must be {kinds[0].__name__}, as in recipes.base()."
            )
