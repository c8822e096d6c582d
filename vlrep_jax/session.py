"""One process's part in training a work directory: what `train.fit` calls, and where it writes."""

import jax
import numpy as np

from vlrep_jax import (
    finished,
    goodput,
    hosts,
    metrics,
    pace,
    processes,
    rollbacks,
    spikes,
    workdirs,
)
from vlrep_jax.build import plain
from vlrep_jax.checkpoint import Checkpoints, SaveError
from vlrep_jax.data.tokenizers import load_tokenizer
from vlrep_jax.evaluation import flat_metrics
from vlrep_jax.experiment import (
    check_vocabulary,
    keep_programs,
    make_experiment,
    make_tokenizer,
)
from vlrep_jax.initial import find_initial
from vlrep_jax.probe import Probe
from vlrep_jax.report import panels_of, write_all_answers
from vlrep_jax.retention import Keep
from vlrep_jax.rollbacks import Rollback
from vlrep_jax.skipping import Skipped, Spike
from vlrep_jax.timing import Clock, DeviceWatch, Interval
from vlrep_jax.train import TrainState, WatchedState, unwatched


class Session:
    """A work directory being trained from its newest checkpoint, or from an earlier one on."""

    def __init__(self, config, workdir, cluster, stop, watchdog, restore_step=None):
        self.config, self.workdir, self.clock = config, workdir, Clock()
        self.cluster, self.stop, self.watchdog = cluster, stop, watchdog
        self.watch = DeviceWatch()
        self.is_writer = jax.process_index() == 0
        is_begun = workdirs.check_same_run(workdir, config)
        keep_programs(config)
        self.experiment = make_experiment(config)
        self.is_watched = isinstance(self.experiment.abstract_state, WatchedState)
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
        like = unwatched(self.experiment.abstract_state)
        self.clock.lap("set-up")
        if restore_step is None:
            self.found = self.checkpoints.newest_good(like)
        else:
            self.found = self.checkpoints.roll_back(restore_step, like)
        self.clock.lap("restoring")
        self.start_step = self.found.step if self.found else 0
        self.rollbacks = self._rollbacks()
        self.results, self.evaluated = {}, (None, {})  # of the newest evaluation
        if self.is_writer and not is_begun:
            tokenizer.save(tokenizer_path)
        self.writer = metrics.MetricsWriter(
            workdir,
            start_step=self.start_step,
            is_writer=self.is_writer,
            total_steps=config.steps,
        )
        self.skipped = Skipped(
            workdir, config.max_skipped, self.writer.say, policy=config.spikes.policy
        )
        self.fresh = {  # what stands beside a state of step 0
            "batches": self.batches.state(),
            "counts": dict.fromkeys(("bad", "truncated"), 0),
            "skipped": self.skipped.state(),
        }
        self.compiled = False
        self.probe, self.compared = None, {}  # how fast the devices of all processes are

    def begin(self) -> TrainState | WatchedState:
        """The state of the checkpoint found, with the data at its place; or the initial state."""
        found, self.found = self.found, None  # what is trained on must not be held here too
        about = hosts.describe(self.cluster, self.config)
        self.pace = pace.Pace(hosts.names(about)) if self.is_writer else None
        self.writer.say(self.experiment.summary())
        if self.is_writer:
            self.writer.say(hosts.summary(about, self.config, self.experiment.mesh))
        self.writer.say(self.batches.summary)
        for name in self.checkpoints.cleared:
            self.writer.say(f"Removed {name}: a run that was killed had not finished it.")
        if found is not None:
            self.batches.restore(found.data["batches"])
            changes = workdirs.changes(
                workdirs.completed(found.record["meta"]["config"]), self.config
            )
            notes = [*found.notes, f"Continuing from step {found.step} of {self.config.steps}."]
            for note in [*notes, *(f"Changed since that step: {text}." for text in changes)]:
                self.writer.say(note)
        if self.is_writer:  # not before: what is there describes the checkpoints
            workdirs.write_json(self.workdir / "config.json", plain(self.config))
        return self._placed(found)

    def go_back(self, spike: Spike) -> TrainState | WatchedState:
        """The state of the newest checkpoint, with the data behind the batch of a spike.

        Raises:
          FloatingPointError: it was gone back to before, so that going back again leads nowhere.
        """
        self._expect(f"going back from step {spike.step}", is_start=True)
        self.clock.lap("training")
        self._note(spike.step)
        self.clock = Clock()
        self._attempt(self.checkpoints.finish)
        found = self.checkpoints.newest_good(unwatched(self.experiment.abstract_state))
        self.clock.lap("restoring")
        to = found.step if found else 0
        if rollbacks.next_batch(self.rollbacks, to) is not None:
            raise FloatingPointError(
                f"{spike} The run went back to step {to} for one before, and on behind its batch: "
                "that did not help, and nothing is saved. Go back further (--restore_step), or "
                "start in another --workdir with a lower config.schedule.peak or a "
                "config.clip_norm; or choose another config.spikes."
            )
        self.rollbacks.append(Rollback(to, spike.step, spike.batch + 1))
        if self.is_writer:
            rollbacks.write(self.workdir, self.rollbacks)
        self.start_step, self.evaluated = to, (None, {})
        self.writer.rewind(to)
        self.writer.say(f"{spike} Going back to step {to}.")
        for note in found.notes if found else ():
            self.writer.say(note)
        return self._placed(found)

    def _rollbacks(self):
        """Those that are behind `start_step`; what came after it is forgotten."""
        read = rollbacks.read(self.workdir) if self.is_writer else []
        read = [Rollback(*entry) for entry in processes.from_first(read)]
        kept = rollbacks.up_to(read, self.start_step)
        if self.is_writer and kept != read:
            rollbacks.write(self.workdir, kept)
        return kept

    def _placed(self, found):
        """The state of a checkpoint, or the initial one, and all that is counted since step 0."""
        if found is None:
            data, state = self.fresh, self.experiment.init()
            if self.config.init_from:
                initial = self._initial()
                state = initial.state(state)
                self.writer.say(initial.summary())
        else:
            data, state = found.data, found.state
            if self.is_watched:
                like = self.experiment.abstract_state.losses
                state = WatchedState(*state, spikes.restored(data.get("losses", []), like))
        self.first_batch = rollbacks.next_batch(self.rollbacks, self.start_step)
        if self.first_batch is None:
            self.first_batch = data["batches"]["next_batch"]
        else:
            self.writer.say(f"On with batch {self.first_batch}, behind that of a spike.")
        self.batches.restore(self.batches.state() | {"next_batch": self.first_batch})
        # Samples of this process since step 0; bad ones also by reason, as `bad/REASON`.
        self.counts = dict(data["counts"])
        self.skipped.restore(data.get("skipped", self.fresh["skipped"]))
        self.clock.lap("set-up")
        self.begun = self.start_step
        self.interval, self.paced = Interval(self.start_step, self.clock), self.start_step + 1
        if self.is_writer:
            self.ledger = goodput.Ledger(
                self.workdir, self.start_step, self.skipped.total, seconds=self.clock.seconds
            )
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
        self.begun += 1
        self.watch.follow(self.begun, step_metrics)
        return state, step_metrics

    def should_stop(self, step):
        """Whether to stop at a step boundary; another step may take its time from here."""
        self._expect(f"step {step + 1}", is_start=step == self.start_step)
        self.begun = step
        return self.stop.at(step)

    def on_result(self, step, step_metrics):
        """Looks at how a step went."""
        number = self.first_batch + step - 1 - self.start_step
        self.skipped.look(step, step_metrics, number, self.batches.keys)

    def on_step(self, step, values):
        """Shows progress, and writes metrics where there are any."""
        if step == self.start_step + 1:
            self.clock.lap("training" if self.compiled else "first step, compiled")
            self.interval, self.compiled = Interval(step, self.clock), True
        self.writer.advance(step)
        if values is None:
            return
        about_steps = ("skipped", "spike")
        values = {f"train/{k}": float(v) for k, v in values.items() if k not in about_steps}
        if np.isnan(values.get("train/loss_z", 0.0)):  # not enough losses yet
            del values["train/loss_z"]
        values["train/skipped_steps"] = self.skipped.total
        if self.is_watched:
            values["train/spikes"] = self.skipped.spikes + len(self.rollbacks)
        self.clock.lap("training")
        values["train/learning_rate"] = float(self.experiment.schedule(step - 1))
        values |= self.interval.until(step, self.config.batch_size)
        self.interval = Interval(step, self.clock)
        values |= {f"data/{name}": count for name, count in self.counts.items()}
        values |= self._paced(step) | self.compared
        self._note(step, now=False)
        if self.is_writer:
            values["time/goodput"] = goodput.share(self.ledger.parts())
        self.writer.write(step, values)
        self.watch.rest()

    def _paced(self, step):
        """How long the steps took since the row before; says which stand out, and who is slow."""
        first, self.paced = self.paced + 1, step
        size = self.config.log_every
        own = pace.measured(self.watch.taken(), first, size, tuple(self.watchdog.pauses))
        rows = processes.gather(own)
        if not self.is_writer:
            return {}
        values, lines = self.pace.judge(first, rows)
        for line in lines:
            self.writer.say(line)
        return values

    def save(self, step, state):
        """Begins to save a checkpoint, and says whether the one before it came to its end."""
        self._expect(f"saving step {step}")
        self.clock.lap("training")
        data = {"batches": self.batches.state(), "counts": self.counts}
        data["skipped"] = self.skipped.state()
        if self.is_watched:
            data["losses"] = spikes.saved(state.losses)
        meta = {"config": plain(self.config), "versions": workdirs.versions()}
        values = self.evaluated[1] if self.evaluated[0] == step else {}
        parts = (step, unwatched(state), data, meta, values)
        self._attempt(self.checkpoints.finish)
        self._compare_devices()
        self._attempt(lambda: self._save(*parts))
        self.clock.lap("saving")
        self._note(step)
        self.watch.rest()

    def _compare_devices(self):
        """Has all processes do the same work, and says whose devices are slow for it."""
        if self.cluster.count == 1:
            return
        self.probe = self.probe or Probe()
        seconds = processes.gather(np.float32(self.probe.seconds()))
        if self.is_writer:
            self.compared, lines = self.pace.compare(seconds)
            for line in lines:
                self.writer.say(line)

    def _attempt(self, act):
        """Calls what may raise SaveError, with which training goes on where it is to."""
        try:
            act()
            self.unsaved = None
        except SaveError as error:
            if self.config.on_save_error == "stop":
                raise
            self.unsaved = error
            self.writer.say(f"{error} Training goes on; the next save is a new attempt.")

    def _save(self, step, *parts):
        """Begins to save, once the disk has what was written of the steps up to there."""
        problem = ""
        try:
            self.writer.sync()
        except OSError as error:
            problem = str(error)
        if problem := processes.first_problem(problem):
            raise SaveError(
                f"Step {step} could not be saved: its metrics cannot be written ({problem})."
            )
        self.checkpoints.save(step, *parts)

    def evaluate(self, step, state):
        """Runs all evaluations and writes their metrics."""
        self._expect(f"evaluating step {step}", is_start=step == 0)
        self.clock.lap("training")
        self.results = self.evaluations(self.encoder(evaluated(state)))
        self.evaluated = step, flat_metrics(self.results)
        workdirs.check_metric(self.config.keep_best["metric"], self.evaluated[1])
        self.writer.write(*self.evaluated)
        self.clock.lap("evaluating")
        self.watch.rest()

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
            self.results = self.evaluations(self.encoder(evaluated(state)))
        if not self.is_writer:
            return
        finished.save_model(self.workdir, self.config)
        self.clock.lap("saving")
        panel, class_sets = panels_of(self.results, self.evaluations.data)
        for path in write_all_answers(self.workdir, self.results, self.evaluations.data):
            self.writer.say(f"Answers, right and wrong, are in {path}")
        self.clock.lap("evaluating")
        self._note(self.config.steps)
        path = finished.write(self.workdir, self.config, panel, class_sets, self.ledger.parts())
        self.writer.say(f"Finished step {self.config.steps}. The report is {path}")

    def tell_goodput(self, step):
        """Says what of the run's time, up to a step, went into steps that count."""
        self.clock.lap("reporting")
        self._note(step)
        if self.is_writer:
            self.writer.say(goodput.words(self.ledger.parts()))

    def _note(self, step, now=True):
        if self.is_writer:
            self.ledger.note(step, self.skipped.total, now=now)

    def _expect(self, phase, is_start=False):
        """Tells the watchdog what begins, and how long it may last."""
        limits = self.config.cluster
        self.watchdog.kick(phase, limits.start_s if is_start else limits.watchdog_s)


def evaluated(state: TrainState | WatchedState):
    """The parameters that evaluations use."""
    return state.params if state.ema is None else state.ema
