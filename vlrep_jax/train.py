"""The train step, the state it maps, and the one loop that runs it."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vlrep_jax import spikes
from vlrep_jax.collectives import first_row, global_mean
from vlrep_jax.models import RUNNING
from vlrep_jax.objectives import Objective
from vlrep_jax.optim import ema_update


class TrainState(NamedTuple):
    """All that a step reads and writes, as one pytree of arrays.

    step: int32[], steps done. params: of the model. opt_state: of optax.
    ema: moving average of the parameters, or None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any


class WatchedState(NamedTuple):
    """A TrainState whose losses are watched for spikes.

    losses: float32[w], the last w finite losses, the newest last; see `spikes`.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    losses: jax.Array


def unwatched(state: TrainState | WatchedState) -> TrainState:
    """What checkpoints hold as arrays, so that a run may begin or cease to watch its losses."""
    return TrainState(*state[: len(TrainState._fields)])


def init_state(
    init_params: Callable,
    tx: optax.GradientTransformation,
    seed: int,
    *,
    ema: bool,
    spike_window: int = 0,
) -> TrainState | WatchedState:
    """The state before the first step; pure in `seed`, to be jitted with the shardings wanted.

    spike_window: how many losses are watched; 0 for none.
    """
    params = init_params(jax.random.key(seed))
    # A copy: the same array twice in a state cannot be donated.
    average = jax.tree.map(jnp.copy, params) if ema else None
    state = TrainState(jnp.int32(0), params, tx.init(params), average)
    return WatchedState(*state, spikes.empty(spike_window)) if spike_window else state


def make_train_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    seed: int = 0,
    axis_name: str | None = None,
    project: Callable = lambda params: params,
    ema_decay: float = 0.0,
    spike_threshold: float = math.inf,
    keeps_spikes: bool = False,
) -> Callable:
    """One optimizer step, the same under every wiring.

    Args:
      objective: (params, batch, key) -> (global value, metrics); running statistics among the
        metrics replace those in the parameters.
      tx: optimizer.
      seed: randomness of step n on shard i is a function of (seed, n, i).
      axis_name: mapped axis around the whole step (pmap); None under jit, where the batch is whole.
      project: applied to the parameters after the update, such as the clamp of the logit scale.
      ema_decay: of the moving average, if the state has one.
      spike_threshold: `spikes.robust_z` beyond which a loss is a spike, of a WatchedState.
      keeps_spikes: apply the updates of spikes too.

    Returns:
      train_step(state, batch) -> (state, metrics), metrics float32[] and equal on every shard.
      Where the loss or the gradient is not finite, or the loss is a spike that is not kept, only
      the step is counted: `skipped` is 1, and parameters, moments, moving average and running
      statistics are bit for bit what they were. Of a WatchedState `spike` says whether the loss
      is one, and `loss_z` how far it stands above those before.
    """

    def train_step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        key = jax.random.fold_in(key, first_row(1, axis_name))
        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (loss, metrics), grads = value_and_grad(state.params, batch, key)
        grads = global_mean(grads, axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = project(optax.apply_updates(state.params, updates))
        params = _replaced(params, metrics.pop(RUNNING, {}))
        ema = None if state.ema is None else ema_update(state.ema, params, ema_decay)
        # The loss is of the parameters before the update: that of a checkpoint's is not known yet.
        norms = {"gradient_norm": optax.tree.norm(grads), "parameter_norm": optax.tree.norm(params)}
        # Of the parameters' own norm the choice must not depend: they would be written first, and
        # then read again to be chosen.
        is_good = jnp.isfinite(loss) & jnp.isfinite(norms["gradient_norm"])
        watched, judged = {}, {}
        if isinstance(state, WatchedState):
            z = spikes.robust_z(loss, state.losses)
            is_number = jnp.isfinite(loss)
            is_spike = is_number & (z > spike_threshold)  # z is NaN before there are enough
            judged = {"spike": is_spike.astype(jnp.float32), "loss_z": z}
            losses = spikes.appended(state.losses, loss)
            watched = {"losses": jnp.where(is_number, losses, state.losses)}
            if not keeps_spikes:
                is_good &= ~is_spike
        old = (state.params, state.opt_state, state.ema)
        kept = jax.tree.map(partial(jnp.where, is_good), (params, opt_state, ema), old)
        skipped = {"skipped": 1 - is_good.astype(jnp.float32)}
        state = type(state)(state.step + 1, *kept, **watched)
        return state, {**metrics, **norms, **judged, **skipped}

    return train_step


def _replaced(tree, changes):
    """A tree of parameters with the leaves of a part of it, nested mappings, replaced."""
    if not isinstance(changes, Mapping):
        return changes
    if not changes:
        return tree
    return dict(tree) | {name: _replaced(tree[name], value) for name, value in changes.items()}


def fit(
    state: TrainState,
    train_step: Callable,
    batches: Iterator,
    *,
    steps: int,
    on_step: Callable,
    on_result: Callable,
    save: Callable,
    evaluate: Callable,
    log_every: int,
    eval_every: int,
    checkpoint_every: int,
    should_stop: Callable[[int], bool],
) -> TrainState:
    """Trains until `steps`, or until told to stop; the state is saved at the end either way.

    Args:
      state: where to begin; its step says how many steps are done.
      train_step: (state, batch) -> (state, metrics).
      batches: gives the batch of the next step, on the devices.
      on_step: (step, metrics or None) after each step; metrics at multiples of log_every.
      on_result: (step, metrics), once for each step in their order, when it is done: no later than
        the next step's begin, and before that step is logged, evaluated or saved. It may raise.
      save, evaluate: (step, state), every so many steps and at the end.
      should_stop: (steps done), asked before each step.

    Returns:
      The last state.
    """
    step = saved = int(state.step)
    waiting = []  # (step, metrics) whose result nobody has seen

    def look():
        while waiting:
            on_result(*waiting.pop())

    if step == 0:
        evaluate(step, state)  # what chance is worth, beside which later figures are read
    while step < steps and not should_stop(step):
        state, metrics = train_step(state, next(batches))
        step += 1
        # One step stays in flight while the next batch is made ready, and no more: a queue of
        # steps would hold a batch each and answer a signal late.
        look()
        waiting.append((step, metrics))
        intervals = (log_every, checkpoint_every, eval_every)
        due = [step % every == 0 or step == steps for every in intervals]
        if any(due):
            look()
        on_step(step, metrics if due[0] else None)
        # Evaluated before saved: a run killed in between does both again, and loses neither.
        if due[2]:
            evaluate(step, state)
        if due[1]:
            save(step, state)
            saved = step
    # Not again: whether it is on disk already is not known to all processes at the same time.
    look()
    if saved != step:
        save(step, state)
    return state
