"""What `vlrep train` and `eval` do with a work directory.

It holds config.json, tokenizer.json, checkpoints/, metrics.jsonl, tb/, sessions.jsonl and, at the
end, model/, report.html and retrievals.png; bad_batches/ and rollbacks.json where there is reason.
"""

import sys
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vlrep_jax import workdirs
from vlrep_jax.checkpoint import Checkpoints
from vlrep_jax.cluster import Cluster
from vlrep_jax.data.tokenizers import load_tokenizer
from vlrep_jax.evaluation import flat_metrics
from vlrep_jax.experiment import keep_programs, make_experiment
from vlrep_jax.session import Session, evaluated
from vlrep_jax.skipping import Spike
from vlrep_jax.stopping import Stop
from vlrep_jax.train import fit, unwatched
from vlrep_jax.watchdog import Watchdog


def train(
    config: ConfigDict,
    workdir: Path,
    restore_step: int | None = None,
    *,
    cluster: Cluster | None = None,
    stop: Stop | None = None,
) -> bool:
    """Trains a config in a work directory, from its newest whole checkpoint if it has one.

    Args:
      restore_step: continue from this step; newer ones are set aside, and never mixed in.
      cluster: of the processes that train together; None for this one alone.
      stop: entered and not yet joined; None listens for signals for as long as this runs.

    Returns:
      True at the last step, False if told to stop before (the state is saved either way).

    Raises:
      ValueError: the config is wrong, the directory holds a run of another one, or the processes
        differ.
      FileNotFoundError: there is no checkpoint of restore_step.
      FloatingPointError: config.max_skipped steps in a row were skipped, or a spike of the loss
        comes again after the run went back for it.
      SaveError: the last state could not be saved, or any if config.on_save_error is 'stop'.
    """
    cluster = Cluster() if cluster is None else cluster
    with ExitStack() as entered:
        stop = entered.enter_context(Stop()) if stop is None else stop
        stop.join(cluster)
        watchdog = entered.enter_context(Watchdog(cluster.end))
        watchdog.kick("start-up", config.cluster.start_s)
        session = Session(config, workdir, cluster, stop, watchdog, restore_step)
        with session.writer:
            # Closed after an error too: a checkpoint may be on its way. With other processes, who
            # would wait for this one, an error ends all of them before that.
            with closing(session), cluster.ending_all():
                state = _fitted(session, config)
                session.finish()
            finished = int(state.step) >= config.steps
            if finished:
                session.report(state)
            session.tell_goodput(int(state.step))
    return finished


def _fitted(session, config):
    """The state at the end, however often the run goes back on its way there."""
    begin = session.begin
    while True:
        try:
            return fit(
                begin(),
                session.step,
                session.device_batches(),
                steps=config.steps,
                on_step=session.on_step,
                on_result=session.on_result,
                save=session.save,
                evaluate=session.evaluate,
                log_every=config.log_every,
                eval_every=config.eval_every,
                checkpoint_every=config.checkpoint_every,
                should_stop=session.should_stop,
            )
        except Spike as spike:
            # Its traceback would hold the state that is given up beside the one to be read.
            begin = partial(session.go_back, spike.with_traceback(None))


def evaluate(workdir: Path, step: int | None, override) -> dict[str, float]:
    """Evaluates a checkpoint of a work directory again.

    The metrics are printed and written to WORKDIR/eval-STEP.json.

    Args:
      workdir: of a training run.
      step: of the checkpoint; None for the newest.
      override: ConfigDict -> ConfigDict, changes of the config, such as other evaluations.

    Raises:
      FileNotFoundError: no such run or checkpoint.
    """
    experiment, encoder, step = load(workdir, step, override)
    if not experiment.config.evals:
        raise ValueError("config.evals is empty: there is nothing to evaluate.")
    values = flat_metrics(experiment.evaluations()(encoder))
    if jax.process_index() == 0:
        workdirs.write_json(workdir / f"eval-{step}.json", {"step": step, **values})
        width = max(map(len, values))
        print("\n".join([f"step {step}", *(f"{k:{width}}  {v:.4f}" for k, v in values.items())]))
    return values


def load(workdir: Path, step: int | None = None, override=lambda config: config):
    """(experiment, encoder, step) of a trained work directory.

    Raises:
      FileNotFoundError: no such run or checkpoint.
    """
    config = override(workdirs.read_config(workdir))
    keep_programs(config)
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(f"{workdir} has no checkpoint yet.")
    tokenizer = load_tokenizer(workdir / "tokenizer.json")
    experiment = make_experiment(config)
    checkpoints = Checkpoints(workdir, read_only=True)
    if step is None:
        found = checkpoints.newest_good(unwatched(experiment.abstract_state))
        if found is None:
            raise FileNotFoundError(f"{workdir} has no checkpoint yet.")
        for note in found.notes:
            print(f"{note} Using step {found.step}.", file=sys.stderr)
        step, state = found.step, found.state
    else:
        state, _ = checkpoints.restore(step, unwatched(experiment.abstract_state))
    return experiment, experiment.encoder(tokenizer)(evaluated(state)), step
