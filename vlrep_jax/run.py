"""What `vlrep train` and `eval` do with a work directory.

It holds config.json, tokenizer.json, checkpoints/, metrics.jsonl, tb/ and, at the end, model/,
report.html and retrievals.png.
"""

import sys
from contextlib import ExitStack, closing
from pathlib import Path

import jax
from ml_collections import ConfigDict

from vlrep_jax import hosts, metrics, workdirs
from vlrep_jax.build import plain
from vlrep_jax.checkpoint import Checkpoints, SaveError
from vlrep_jax.cluster import Cluster
from vlrep_jax.data.tokenizers import load_tokenizer
from vlrep_jax.evaluation import flat_metrics
from vlrep_jax.experiment import (
    check_vocabulary,
    keep_programs,
    make_experiment,
    make_tokenizer,
)
from vlrep_jax.initial import find_initial
from vlrep_jax.report import RetrievalPanel, ZeroShotPanel, contact_sheet, write_report
from vlrep_jax.retention import Keep
from vlrep_jax.skipping import Skipped
from vlrep_jax.stopping import Stop
from vlrep_jax.timing import Clock, DeviceWatch, Interval
from vlrep_jax.train import fit
from vlrep_jax.watchdog import Watchdog
from vlrep_jax.weights import save_run


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

    Args:
      cluster: of the processes that train together; None for this one alone.
      stop: entered and not yet joined; None listens for signals for as long as this runs.

    Returns:
      True at the last step, False if told to stop before (the state is saved either way).

    Raises:
      ValueError: the config is wrong, the directory holds a run of another one, or the processes
        differ.
      FileNotFoundError: there is no checkpoint of restore_step.
      FloatingPointError: the loss is not finite in config.max_skipped steps in a row.
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
                state = fit(
                    session.restored(),
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
                session.finish()
            finished = int(state.step) >= config.steps
            if finished:
                session.report(state)
    return finished


class Session:
    """One process's part in training a work directory: what `fit` calls, and where it writes."""

    def __init__(self, config, workdir, cluster, stop, watchdog, restore_step=None):
        self.config, self.workdir, self.clock = config, workdir, Clock()
        self.cluster, self.stop, self.watchdog = cluster, stop, watchdog
        self.watch = DeviceWatch()
        self.is_writer = jax.process_index() == 0
        is_begun = workdirs.check_same_run(workdir, config)
        keep_programs(config)
        self.experiment = make_experiment(config)
        self.clock.lap("set-up")
        tokenizer_path = workdir / "tokenizer.json"
        # The checkpoints' tokenizer is the saved one; before the first, it is that of the
        # parameters to begin with, or the config's.
        if is_begun:
            tokenizer = load_tokenizer(tokenizer_path)
        elif config.init_from:
            tokenizer = self._initial().tokenizer(config)
        else:
            tokenizer = make_tokenizer(config)
        check_vocabulary(tokenizer, self.experiment.model)
        self.batches = self.experiment.train_batches(tokenizer)
        hosts.check_equal(cluster, config, self.batches.state()["fingerprint"])
        self.evaluations = self.experiment.evaluations()
        self.clock.lap("preparing data")
        self.encoder = self.experiment.encoder(tokenizer)
        keep = Keep(config.keep_checkpoints, config.keep_every, **config.keep_best)
        self.checkpoints, self.unsaved = Checkpoints(workdir, keep=keep), None
        like = self.experiment.abstract_state
        if restore_step is None:
            self.found = self.checkpoints.newest_good(like)
        else:
            self.found = self.checkpoints.roll_back(restore_step, like)
        self.start_step = self.found.step if self.found else 0
        # Samples of this process since step 0; bad ones also by reason, as `bad/REASON`.
        self.counts = dict.fromkeys(("bad", "truncated"), 0)
        self.results, self.evaluated = {}, (None, {})  # of the newest evaluation
        if self.is_writer and not is_begun:
            tokenizer.save(tokenizer_path)
        self.writer = metrics.MetricsWriter(
            workdir,
            start_step=self.start_step,
            is_writer=self.is_writer,
            total_steps=config.steps,
        )
        self.skipped = Skipped(workdir, config.max_skipped, self.writer.say)

    def restored(self):
        """The state of the checkpoint found, with the data at its place; or the initial state."""
        self.writer.say(self.experiment.summary())
        self.writer.say(hosts.summary(self.cluster, self.config, self.experiment.mesh))
        self.writer.say(self.batches.summary)
        for name in self.checkpoints.cleared:
            self.writer.say(f"Removed {name}: a run that was killed had not finished it.")
        found, self.found = self.found, None  # what is trained on must not be held here too
        if found is None:
            state = self.experiment.init()
            if self.config.init_from:
                initial = self._initial()
                state = initial.state(state)
                self.writer.say(initial.summary())
        else:
            state = found.state
            self.batches.restore(found.data["batches"])
            self.counts |= found.data["counts"]
            self.skipped.restore(found.data.get("skipped", self.skipped.state()))
            notes = [*found.notes, f"Continuing from step {found.step} of {self.config.steps}."]
            changes = workdirs.changes(found.record["meta"]["config"], self.config)
            for note in [*notes, *(f"Changed since that step: {text}." for text in changes)]:
                self.writer.say(note)
        if self.is_writer:  # not before: what is there describes the checkpoints
            workdirs.write_json(self.workdir / "config.json", plain(self.config))
        self.first_batch = self.batches.state()["next_batch"]
        self.clock.lap("set-up")
        self.interval = Interval(self.start_step, self.clock)
        return state

    def _initial(self):
        params = self.experiment.abstract_state.params
        config, model = self.config, self.experiment.model
        return find_initial(
            config.init_from,
            params,
            model,
            skip=config.init_skip,
            image=plain(config.image),
        )

    def device_batches(self):
        """Batches on the devices; what was bad or cut short in them is counted."""
        while True:
            self.clock.lap("training")
            seen = self.batches.bad_reasons.copy()
            batch = next(self.batches)
            for name in ("bad", "truncated"):
                self.counts[name] += int(batch.pop(name).sum())
            for reason, count in (self.batches.bad_reasons - seen).items():
                name = f"bad/{reason}"
                self.counts[name] = self.counts.get(name, 0) + count
            # While a step ran on the devices, the batch was made beside it.
            self.clock.lap("training", until=self.watch.finished_at())
            self.clock.lap("waiting for data")
            yield self.experiment.put(batch)

    def step(self, state, batch):
        """One step, whose end is watched."""
        state, step_metrics = self.experiment.step(state, batch)
        self.watch.follow(step_metrics)
        return state, step_metrics

    def should_stop(self, step):
        """Whether to stop at a step boundary; another step may take its time from here."""
        self._expect(f"step {step + 1}", is_start=step == self.start_step)
        return self.stop.at(step)

    def on_result(self, step, step_metrics):
        """Looks at how a step went."""
        number = self.first_batch + step - 1 - self.start_step
        self.skipped.look(step, step_metrics, lambda: self.batches.keys(number))

    def on_step(self, step, values):
        """Shows progress, and writes metrics where there are any."""
        if step == self.start_step + 1:
            self.clock.lap("first step, compiled")
            self.interval = Interval(step, self.clock)
        self.writer.advance(step)
        if values is None:
            return
        values = {f"train/{k}": float(v) for k, v in values.items() if k != "skipped"}
        values["train/skipped_steps"] = self.skipped.total
        self.clock.lap("training")
        values["train/learning_rate"] = float(self.experiment.schedule(step - 1))
        values |= self.interval.until(step, self.config.batch_size)
        self.interval = Interval(step, self.clock)
        values |= {f"data/{name}": count for name, count in self.counts.items()}
        self.writer.write(step, values)

    def save(self, step, state):
        """Begins to save a checkpoint, and says whether the one before it came to its end."""
        self._expect(f"saving step {step}")
        self.clock.lap("training")
        data = {"batches": self.batches.state(), "counts": self.counts}
        data["skipped"] = self.skipped.state()
        meta = {"config": plain(self.config), "versions": workdirs.versions()}
        values = self.evaluated[1] if self.evaluated[0] == step else {}
        parts = (step, state, data, meta, values)
        for act in (self.checkpoints.finish, lambda: self.checkpoints.save(*parts)):
            try:
                act()
                self.unsaved = None
            except SaveError as error:
                if self.config.on_save_error == "stop":
                    raise
                self.unsaved = error
                self.writer.say(f"{error} Training goes on; the next save is a new attempt.")
        self.clock.lap("saving")

    def evaluate(self, step, state):
        """Runs all evaluations and writes their metrics."""
        self._expect(f"evaluating step {step}", is_start=step == 0)
        self.clock.lap("training")
        self.results = self.evaluations(self.encoder(_evaluated(state)))
        self.evaluated = step, flat_metrics(self.results)
        workdirs.check_metric(self.config.keep_best["metric"], self.evaluated[1])
        self.writer.write(*self.evaluated)
        self.clock.lap("evaluating")

    def finish(self):
        """Waits for the last checkpoint; raises SaveError where it is not on disk."""
        self.checkpoints.finish()
        if self.unsaved is not None:
            raise self.unsaved

    def close(self):
        """Stops the data threads and waits for what is being saved; after an error too."""
        self._expect("finishing the last checkpoint")
        self.watch.close()
        self.batches.close()
        try:
            self.checkpoints.close()
        except SaveError as error:  # beside the error that ends the run
            self.writer.say(str(error))
        self.clock.lap("saving")

    def report(self, state):
        """Writes the model and the report of the finished run."""
        self._expect("writing the report")
        if not self.results:  # nothing was left to do in this session
            self.results = self.evaluations(self.encoder(_evaluated(state)))
        if not self.is_writer:
            return
        save_run(self.workdir, self.config.steps, self.workdir / "model")
        self.clock.lap("saving")
        panel, class_sets = None, {}
        for name, result in self.results.items():
            if "image_of_text" in result.details and panel is None:
                data = self.evaluations.data[name]
                # No mesh: only this process is here.
                panel = RetrievalPanel.of(name, result.details, data.pictures(), data.captions)
            for class_set, details in result.details.get("sets", {}).items():
                class_sets[class_set] = ZeroShotPanel(**details)
        self.clock.lap("evaluating")
        if panel is not None:
            contact_sheet(self.workdir / "retrievals.png", panel)
        path = self.workdir / "report.html"
        write_report(
            path,
            title=f"{self.workdir.name}: {self.config.steps:,} steps",
            config=plain(self.config),
            versions=workdirs.versions(),
            history=metrics.read(self.workdir / metrics.FILE_NAME),
            retrieval=panel,
            zero_shot=class_sets,
            timing=self.clock.seconds,
        )
        self.writer.say(f"Finished step {self.config.steps}. The report is {path}")

    def _expect(self, phase, is_start=False):
        """Tells the watchdog what begins, and how long it may last."""
        limits = self.config.cluster
        self.watchdog.kick(phase, limits.start_s if is_start else limits.watchdog_s)


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
        found = checkpoints.newest_good(experiment.abstract_state)
        if found is None:
            raise FileNotFoundError(f"{workdir} has no checkpoint yet.")
        for note in found.notes:
            print(f"{note} Using step {found.step}.", file=sys.stderr)
        step, state = found.step, found.state
    else:
        state, _ = checkpoints.restore(step, experiment.abstract_state)
    return experiment, experiment.encoder(tokenizer)(_evaluated(state)), step


def _evaluated(state):
    """The parameters that evaluations use."""
    return state.params if state.ema is None else state.ema
