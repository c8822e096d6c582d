"""Optimizers and schedules from plain keywords, and what happens to parameters after an update.

Every optimizer is: clip the gradients' norm, turn them into a direction, add the decayed weights,
multiply by the learning rate. Weight decay is decoupled from the moments and scaled by the learning
rate in all of them.
"""

import math

import jax
import jax.numpy as jnp
import optax
from optax import contrib
from optax.contrib import MuonDimensionNumbers

from vlrep_jax.build import check_options, find
from vlrep_jax.rules import match_rules

# CLIP decays everything but gains and biases (arXiv:2103.00020, section 2.5).
NO_DECAY = (("(logit_)?(bias|scale)", False),)
# Batch norm's statistics are among the parameters, but no optimizer's business.
RUNNING = (("running_(mean|var)", True),)


# Directions. `decay` adds the decayed weights; each puts it where its paper does.


def adamw(decay, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    """AdamW (arXiv:1711.05101)."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), decay)


def lion(decay, *, b1=0.9, b2=0.99, mu_dtype=None):
    """Lion (arXiv:2302.06675)."""
    return optax.chain(optax.scale_by_lion(b1, b2, mu_dtype=mu_dtype), decay)


def adafactor(
    decay,
    *,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    clipping_threshold=1.0,
    multiply_by_parameter_scale=True,
    momentum=None,
    mu_dtype=jnp.float32,
    eps=1e-30,
):
    """Adafactor (arXiv:1804.04235)."""
    descent = optax.adafactor(
        learning_rate=None,
        min_dim_size_to_factor=min_dim_size_to_factor,
        decay_rate=decay_rate,
        clipping_threshold=clipping_threshold,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        momentum=momentum,
        dtype_momentum=mu_dtype,
        eps=eps,
    )
    # It ends in -1, as the learning rate does here.
    return optax.chain(descent, optax.scale(-1), decay)


def lamb(decay, *, b1=0.9, b2=0.999, eps=1e-6, mu_dtype=None):
    """LAMB (arXiv:1904.00962); its trust ratio covers the decayed weights too."""
    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
    return optax.chain(adam, decay, optax.scale_by_trust_ratio())


# How Muon sees a kernel as a matrix, counted from the end: stacked layers have an axis before it.
_MATRICES = (
    ("(patch_embedding|stem/conv_[0-9]+)/kernel", None),  # input layers, which it leaves to Adam
    ("(conv_[0-9]+|downsample_conv)/kernel", MuonDimensionNumbers((-4, -3, -2), -1)),
    ("(attn|pool)/(query|key|value)/kernel", MuonDimensionNumbers(-3, (-2, -1))),
    ("(attn|pool)/out/kernel", MuonDimensionNumbers((-3, -2), -1)),
    ("kernel", MuonDimensionNumbers(-2, -1)),
)
_ADAM_RMS = 0.2  # of an AdamW update, as measured in Muon's paper


def muon(decay, *, beta=0.95, b1=0.9, b2=0.999, eps=1e-8, adam_rate=1.0, mu_dtype=None):
    """Muon (arXiv:2502.16982) for the kernels of layers and projections, Adam for the rest.

    Updates of kernels are scaled to the size of Adam's, so that AdamW's learning rates carry over.
    `adam_rate` is the rate of everything else relative to theirs.
    """

    def matrices(tree):
        return match_rules(_MATRICES, tree, None, require_match=False)

    def labels(tree):
        is_matrix = [(regex, axes is not None) for regex, axes in _MATRICES]
        found = match_rules(is_matrix, tree, False, require_match=False)
        return jax.tree.map(lambda x, m: "muon" if m and x.ndim > 1 else "adam", tree, found)

    orthogonal = optax.chain(
        contrib.scale_by_muon(beta=beta, mu_dtype=mu_dtype, weight_dimension_numbers=matrices),
        optax.stateless(
            lambda updates, _: jax.tree.map(_to_adams_size, updates, matrices(updates))
        ),
    )
    adam = optax.chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), optax.scale(adam_rate))
    parts = {"muon": orthogonal, "adam": adam}
    return optax.chain(optax.partition(parts, labels), decay)


def _to_adams_size(update, axes):
    """Scales an orthogonal matrix, whose entries shrink with its longer side, to one fixed RMS."""

    def size(dims):
        return math.prod(update.shape[dim] for dim in ([dims] if isinstance(dims, int) else dims))

    return update * _ADAM_RMS * math.sqrt(max(size(axes.reduction_axis), size(axes.output_axis)))


def sgd(decay, *, momentum=None, nesterov=False, mu_dtype=None):
    """Gradient descent, with heavy-ball or Nesterov momentum if given."""
    if momentum is None:
        return decay
    return optax.chain(optax.trace(momentum, nesterov, accumulator_dtype=mu_dtype), decay)


OPTIMIZERS = {
    "adamw": adamw,
    "lion": lion,
    "adafactor": adafactor,
    "lamb": lamb,
    "muon": muon,
    "sgd": sgd,
}


def make_optimizer(
    name: str,
    *,
    schedule,
    params,
    weight_decay: float = 0.0,
    decay=None,
    freeze=(),
    clip_norm: float | None = None,
    **keywords,
) -> optax.GradientTransformation:
    """Returns the optimizer `name` for `params`.

    Args:
      name: a key of OPTIMIZERS.
      schedule: step -> learning rate, or a constant one.
      params: the parameters, or their shapes; only paths and structure are used.
      weight_decay: the update subtracts learning rate * weight_decay * parameter.
      decay: path rules (regex, bool or multiplier of weight_decay), see `vlrep_jax.rules`;
        parameters without a rule decay. None: NO_DECAY, all but gains and biases.
      freeze: path rules (regex, bool). A frozen parameter never changes, has no moments and its
        gradient is not in the clipped norm. Freezing `image/.*` gives LiT (arXiv:2111.07991).
        Running statistics always are: the train step writes them.
      clip_norm: gradients are scaled down to this global norm; None leaves them alone.
      keywords: of the optimizer, as in the signatures above.

    Raises:
      ValueError: an unknown name or keyword, a rule that matches nothing, nothing left to train.
    """
    direction = find(OPTIMIZERS, name, "optimizer")
    check_options(direction, keywords, f"optimizer {name!r}", also=("weight_decay", "decay"))
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm={clip_norm} must be positive; None turns clipping off.")
    rules = NO_DECAY if decay is None else decay
    multipliers = match_rules(rules, params, True, require_match=decay is not None)
    frozen = jax.tree.map(
        lambda by_rule, running: by_rule or running,
        match_rules(freeze, params, False),
        running_statistics(params),
    )
    if all(jax.tree.leaves(frozen)):
        raise ValueError(f"freeze={freeze!r} leaves no parameter to train.")
    # optax.partition below hands frozen parameters on as masked nodes; the trees must stay alike.
    multipliers = jax.tree.map(
        lambda is_frozen, m: optax.MaskedNode() if is_frozen else m, frozen, multipliers
    )
    steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    steps += [
        direction(_add_decayed(weight_decay, multipliers), **keywords),
        optax.scale_by_learning_rate(schedule),
    ]
    train = optax.chain(*steps)
    if not any(jax.tree.leaves(frozen)):
        return train
    labels = jax.tree.map(lambda is_frozen: "frozen" if is_frozen else "train", frozen)
    return optax.partition({"train": train, "frozen": optax.set_to_zero()}, labels)


def running_statistics(params):
    """Which leaves are statistics that batch norm keeps, as a tree of bools."""
    return match_rules(RUNNING, params, False, require_match=False)


def parameter_count(params) -> int:
    """How many numbers training learns: those of all parameters, or shapes, but statistics."""
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(running_statistics(params)), strict=True)
    return sum(math.prod(leaf.shape) for leaf, running in leaves if not running)


def _add_decayed(weight_decay, multipliers):
    """Adds weight_decay * multiplier * parameter (optax's own takes only a mask)."""

    def update(updates, params):
        if params is None:
            raise ValueError("weight decay needs the parameters: tx.update(grads, state, params).")
        return jax.tree.map(lambda u, m, p: u + weight_decay * m * p, updates, multipliers, params)

    return optax.stateless(update) if weight_decay else optax.identity()


# Schedules: step -> learning rate, rising linearly from 0 at step 0 to `peak` at `warmup_steps`.


def cosine(peak, total_steps, warmup_steps=0, end=0.0):
    """Half a cosine from `peak` down to `end` at `total_steps`, constant from there on."""
    steps = _steps_after_warmup(total_steps, warmup_steps)
    fall = optax.cosine_decay_schedule(1.0, steps)
    return _warmed_up(lambda step: end + (peak - end) * fall(step), peak, warmup_steps)


def linear(peak, total_steps, warmup_steps=0, end=0.0):
    """A line from `peak` to `end` at `total_steps`, constant from there on."""
    steps = _steps_after_warmup(total_steps, warmup_steps)
    return _warmed_up(optax.linear_schedule(peak, end, steps), peak, warmup_steps)


def constant(peak, total_steps=None, warmup_steps=0):
    """`peak` for ever; `total_steps` is there so that schedules can be swapped by name."""
    del total_steps
    return _warmed_up(optax.constant_schedule(peak), peak, warmup_steps)


def rsqrt(peak, total_steps=None, warmup_steps=0, timescale=10_000):
    """peak / sqrt(1 + (step - warmup_steps) / timescale) (arXiv:2106.04560).

    With `timescale=warmup_steps` it is the Transformer's peak * sqrt(warmup_steps / step). It does
    not depend on `total_steps`.
    """
    del total_steps

    def fall(step):
        # While warming up `step` is negative, and the result is dropped.
        return peak / jnp.sqrt(1 + jnp.maximum(step, 0) / timescale)

    return _warmed_up(fall, peak, warmup_steps)


SCHEDULES = {"cosine": cosine, "linear": linear, "constant": constant, "rsqrt": rsqrt}


def _steps_after_warmup(total_steps, warmup_steps):
    """How many steps are left; at least one."""
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be at least 0 and below total_steps={total_steps}."
        )
    return total_steps - warmup_steps


def _warmed_up(schedule, peak, warmup_steps):
    """The schedule, put off by a linear rise to its peak."""
    if not warmup_steps:
        return schedule
    rise = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([rise, schedule], [warmup_steps])


# After the update.


def clamp(params, rules):
    """Returns params with path rules (regex, (low, high)) applied; None is no bound.

    CLIP keeps its logit scale, stored as a log, at 100 or less after every update:
    clamp(params, [("logit_scale", (None, math.log(100)))]).
    """
    bounds = match_rules(rules, params, None)
    return jax.tree.map(lambda x, b: x if b is None else jnp.clip(x, b[0], b[1]), params, bounds)


def ema_update(ema, params, decay):
    """Returns decay * ema + (1 - decay) * params, in the dtype of `ema`."""
    return jax.tree.map(lambda e, p: (e + (1 - decay) * (p - e)).astype(e.dtype), ema, params)
