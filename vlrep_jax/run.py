"""What `vlrep train`, `eval` and `embed` do with a work directory.

It holds config.json, tokenizer.json, checkpoints/, metrics.jsonl, tb/ and, at the end,
report.html and retrievals.png.
"""

import signal
import time
from contextlib import closing, contextmanager
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vlrep_jax import metrics, workdirs
from vlrep_jax.build import plain
from vlrep_jax.checkpoint import Checkpoints
from vlrep_jax.data.pipeline import eval_batches
from vlrep_jax.data.sources import Pictures
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
from vlrep_jax.train import fit


def train(config: ConfigDict, workdir: Path) -> bool:
    """Trains a config in a work directory, from its newest checkpoint if it has one.

    Returns:
      True at the last step, False if told to stop before (the state is saved either way).

    Raises:
      ValueError: the config is wrong, or the directory holds a run of another one.
      FloatingPointError: the loss is not finite.
    """
    with stop_on_signal() as stopped:
        session = Session(config, workdir)
        with session.writer:
            with closing(session):  # after an error too: a checkpoint may be on its way
                state = fit(
                    session.restored(),
                    session.experiment.step,
                    session.device_batches(),
                    steps=config.steps,
                    on_step=session.on_step,
                    save=session.save,
                    evaluate=session.evaluate,
                    log_every=config.log_every,
                    eval_every=config.eval_every,
                    checkpoint_every=config.checkpoint_every,
                    should_stop=lambda: bool(stopped),
                )
            finished = int(state.step) >= config.steps
            if finished:
                session.report(state)
    return finished


class Session:
    """One process's part in training a work directory: what `fit` calls, and where it writes."""

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config, self.workdir, self.clock = config, workdir, Clock()
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
        self.evaluations = self.experiment.evaluations()
        self.clock.lap("preparing data")
        self.encoder = self.experiment.encoder(tokenizer)
        self.checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
        self.start_step = max(self.checkpoints.steps(), default=0)
        self.counts = dict.fromkeys(("bad", "truncated"), 0)  # samples since step 0
        self.results = {}  # of the newest evaluation
        if self.is_writer and not is_begun:
            tokenizer.save(tokenizer_path)
        self.writer = metrics.MetricsWriter(
            workdir,
            start_step=self.start_step,
            is_writer=self.is_writer,
            total_steps=config.steps,
        )

    def restored(self):
        """The state of the newest checkpoint, with the data at its place; or the initial state."""
        self.writer.say(self.experiment.summary())
        if not self.start_step:
            state = self.experiment.init()
            if self.config.init_from:
                initial = self._initial()
                state = initial.state(state)
                self.writer.say(initial.summary())
        else:
            state, data = self.checkpoints.restore(self.start_step, self.experiment.abstract_state)
            self.batches.restore(data["batches"])
            self.counts |= data["counts"]
            self.writer.say(f"Continuing from step {self.start_step} of {self.config.steps}.")
        if self.is_writer:  # not before: what is there describes the checkpoints
            workdirs.write_json(self.workdir / "config.json", plain(self.config))
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
            batch = next(self.batches)
            for name in self.counts:
                self.counts[name] += int(batch.pop(name).sum())
            self.clock.lap("waiting for data")
            yield self.experiment.put(batch)

    def on_step(self, step, values):
        """Shows progress, and writes metrics where there are any."""
        if step == self.start_step + 1:
            self.clock.lap("first step, compiled")
            self.interval = Interval(step, self.clock)
        self.writer.advance(step)
        if values is None:
            return
        values = {f"train/{name}": float(value) for name, value in values.items()}
        self.clock.lap("training")
        values["train/learning_rate"] = float(self.experiment.schedule(step - 1))
        values |= self.interval.until(step, self.config.batch_size)
        self.interval = Interval(step, self.clock)
        values |= {f"data/{name}": count for name, count in self.counts.items()}
        self.writer.write(step, values)

    def save(self, step, state):
        """Begins to save a checkpoint."""
        self.clock.lap("training")
        data = {"batches": self.batches.state(), "counts": self.counts}
        meta = {"config": plain(self.config), "versions": workdirs.versions()}
        self.checkpoints.save(step, state, data, meta)
        self.clock.lap("saving")

    def evaluate(self, step, state):
        """Runs all evaluations and writes their metrics."""
        self.clock.lap("training")
        self.results = self.evaluations(self.encoder(_evaluated(state)))
        self.writer.write(step, flat_metrics(self.results))
        self.clock.lap("evaluating")

    def close(self):
        """Stops the data threads and waits for the last checkpoint."""
        self.batches.close()
        self.checkpoints.close()
        self.clock.lap("saving")

    def report(self, state):
        """Writes the report of the finished run."""
        if not self.results:  # nothing was left to do in this session
            self.results = self.evaluations(self.encoder(_evaluated(state)))
        if not self.is_writer:
            return
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


def embed(
    workdir: Path, out: Path, *, images: str | None, texts: str | None, step: int | None
) -> None:
    """Embeds picture files or lines of text with a checkpoint of a work directory.

    Writes an .npz of `embeddings` float32[n, d], L2-normalised, and `paths` or `texts`, n strings.

    Args:
      images: glob pattern of picture files; those that cannot be read are named and left out.
      texts: UTF-8 file with one text a line; or give `images`.

    Raises:
      FileNotFoundError: no such run, checkpoint or file, or no file matches.
    """
    if out.suffix != ".npz":
        raise ValueError(f"--out={out} must end in .npz.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"--out={out}: there is no directory {out.absolute().parent}.")
    inputs = files(images) if images else _lines(Path(texts))
    experiment, encoder, _ = load(workdir, step)
    if images:
        batches = eval_batches(
            Pictures(inputs),
            preprocess=experiment.preprocess,
            batch_size=encoder.batch_size,
        )
        readable = []

        def seen():
            for batch in batches:
                readable.extend(batch["weights"][batch["index"] >= 0] > 0)
                yield batch

        embeddings = encoder.images(seen())
        left_out = [path for path, good in zip(inputs, readable, strict=True) if not good]
        if left_out:
            print(f"Left out {len(left_out)} that cannot be read: {', '.join(left_out[:10])}")
        if len(left_out) == len(inputs):
            raise ValueError(f"None of the {len(inputs)} files is a picture that can be read.")
        embeddings = embeddings[readable]
        inputs = [path for path, good in zip(inputs, readable, strict=True) if good]
    else:
        embeddings = encoder.texts(inputs)
    part = out.with_suffix(".part.npz")
    np.savez(part, embeddings=embeddings, **{"paths" if images else "texts": np.array(inputs)})
    part.replace(out)
    print(f"Wrote {len(inputs)} embeddings of width {embeddings.shape[1]} to {out}")


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
    if not checkpoints.steps():
        raise FileNotFoundError(f"{workdir} has no checkpoint yet.")
    step = checkpoints.steps()[-1] if step is None else step
    state, _ = checkpoints.restore(step, experiment.abstract_state)
    checkpoints.close()
    return experiment, experiment.encoder(tokenizer)(_evaluated(state)), step


class Clock:
    """Where the wall time went: seconds by phase."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, phase: str) -> None:
        """Books the time since the last lap."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now


class Interval:
    """The rate of training since a step, evaluations and saving left out."""

    def __init__(self, step: int, clock: Clock):
        self._step, self._clock, self._began = step, clock, self._read(clock)

    def until(self, step: int, batch_size: int) -> dict[str, float]:
        """Images a second over all devices, and the share of the time spent waiting for data."""
        training, waiting = self._read(self._clock) - self._began
        seconds, steps = training + waiting, step - self._step
        if not steps or not seconds:
            return {}
        return {
            "train/images_per_second": steps * batch_size / seconds,
            "train/data_wait_fraction": waiting / seconds,
        }

    @staticmethod
    def _read(clock):
        return np.array([clock.seconds.get(k, 0.0) for k in ("training", "waiting for data")])


@contextmanager
def stop_on_signal():
    """A list that is not empty once SIGINT or SIGTERM came; a second signal ends at once."""
    received = []

    def note(number, _):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _evaluated(state):
    """The parameters that evaluations use."""
    return state.params if state.ema is None else state.ema


def files(pattern):
    """Paths of a glob pattern, sorted."""
    import glob

    found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not found:
        raise FileNotFoundError(f"--images={pattern} matches no file; quote it from the shell.")
    return found


def _lines(path):
    """The lines of a text file, blank ones too: row i of the embeddings is line i."""
    if not path.is_file():
        raise FileNotFoundError(f"--texts={path}: there is no such file.")
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--texts={path} is not UTF-8: {error}.") from None
    if not any(line.strip() for line in lines):
        raise ValueError(f"--texts={path} holds no text.")
    return [line.removesuffix("\r") for line in lines]
