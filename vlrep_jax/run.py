"""What `vlrep train`, `eval` and `embed` do with a work directory.

WORKDIR/config.json  tokenizer.json  checkpoints/  metrics.jsonl  tb/  report.html
"""

import signal
import time
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vlrep_jax import metrics, report, workdirs
from vlrep_jax.build import plain
from vlrep_jax.checkpoint import Checkpoints
from vlrep_jax.data.pipeline import eval_batches
from vlrep_jax.data.sources import Pictures
from vlrep_jax.evaluation import flat_metrics
from vlrep_jax.experiment import Experiment, check_vocabulary, make_experiment, make_tokenizer
from vlrep_jax.train import fit


def train(config: ConfigDict, workdir: Path) -> bool:
    """Trains a config in a work directory, from its newest checkpoint if it has one.

    Returns:
      True at the last step, False if told to stop before (the state is saved either way).

    Raises:
      ValueError: the config is wrong, or the directory holds a run of another one.
      FloatingPointError: the loss is not finite.
    """
    clock = Clock()
    is_writer = jax.process_index() == 0
    with stop_on_signal() as stopped:
        workdirs.check_same_run(workdir, config)
        experiment = make_experiment(config)
        tokenizer = make_tokenizer(config, workdir / "tokenizer.json")
        check_vocabulary(tokenizer, experiment.model)
        batches = experiment.train_batches(tokenizer)
        evaluations = experiment.evaluations()
        if is_writer:
            workdir.mkdir(parents=True, exist_ok=True)
            workdirs.write_json(workdir / "config.json", plain(config))
            tokenizer.save(workdir / "tokenizer.json")
        checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
        counts = dict.fromkeys(("bad", "truncated"), 0)  # samples so far, over all sessions
        if checkpoints.steps():
            state, data_state = checkpoints.restore(
                checkpoints.steps()[-1], experiment.abstract_state
            )
            batches.restore(data_state["batches"])
            counts |= data_state["counts"]
        else:
            state = experiment.init()
        start_step = int(state.step)
        clock.lap("set-up")

        encoder = experiment.encoder(tokenizer)
        results = {}
        with metrics.MetricsWriter(
            workdir, start_step=start_step, is_writer=is_writer, total_steps=config.steps
        ) as writer:
            if start_step:
                writer.say(f"Continuing from step {start_step} of {config.steps}.")

            def device_batches():
                while True:
                    clock.lap("training")
                    batch = next(batches)
                    for name in counts:
                        counts[name] += int(batch.pop(name).sum())
                    clock.lap("waiting for data")
                    yield experiment.put(batch)

            def on_step(step, values):
                nonlocal measured
                if step == start_step + 1:
                    jax.block_until_ready(values)
                    clock.lap("first step, compiled")
                    measured = Interval(step, clock)
                writer.advance(step)
                if values is None:
                    return
                values = {f"train/{name}": float(value) for name, value in values.items()}
                clock.lap("training")
                values["train/learning_rate"] = float(experiment.schedule(step - 1))
                values |= measured.until(step, config.batch_size)
                measured = Interval(step, clock)
                values |= {f"data/{name}": count for name, count in counts.items()}
                writer.write(step, values)

            def save(step, state):
                clock.lap("training")
                data_state = {"batches": batches.state(), "counts": counts}
                meta = {"config": plain(config), "versions": workdirs.versions()}
                checkpoints.save(step, state, data_state, meta)
                clock.lap("saving")

            def evaluate(step, state):
                clock.lap("training")
                results.update(evaluations(encoder(_evaluated(state))))
                writer.write(step, flat_metrics(results))
                clock.lap("evaluating")

            measured = Interval(start_step, clock)
            state = fit(
                state,
                experiment.step,
                device_batches(),
                steps=config.steps,
                on_step=on_step,
                save=save,
                evaluate=evaluate,
                log_every=config.log_every,
                eval_every=config.eval_every,
                checkpoint_every=config.checkpoint_every,
                should_stop=lambda: bool(stopped),
            )
            batches.close()
            checkpoints.close()
            clock.lap("saving")
            finished = int(state.step) >= config.steps
            if finished and is_writer:
                if not results:  # the run was complete already
                    results.update(evaluations(encoder(_evaluated(state))))
                write_report(workdir, config, experiment, evaluations, results, clock)
                writer.say(f"Finished step {config.steps}. See {workdir / 'report.html'}")
    return finished


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
    inputs = _files(images) if images else _lines(Path(texts))
    experiment, encoder, _ = load(workdir, step)
    if images:
        batches = eval_batches(
            Pictures(inputs),
            image_size=experiment.image_size,
            mode=experiment.config.image.mode,
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
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
    if not checkpoints.steps():
        raise FileNotFoundError(f"{workdir} has no checkpoint yet.")
    step = checkpoints.steps()[-1] if step is None else step
    experiment = make_experiment(config)
    state, _ = checkpoints.restore(step, experiment.abstract_state)
    checkpoints.close()
    tokenizer = make_tokenizer(config, workdir / "tokenizer.json")
    return experiment, experiment.encoder(tokenizer)(_evaluated(state)), step


def write_report(workdir, config, experiment: Experiment, evaluations, results, clock) -> None:
    """WORKDIR/report.html of a finished run, from what its directory and last evaluation hold."""
    panel, class_sets = None, {}
    for name, result in results.items():
        if "text" in result.details and panel is None:
            data = evaluations.data[name]
            panel = report.RetrievalPanel.of(
                name, result.details, data.pictures(), data.captions, mesh=experiment.mesh
            )
        for class_set, details in result.details.get("sets", {}).items():
            class_sets[class_set] = report.ZeroShotPanel(**details)
    clock.lap("report")
    report.write_report(
        workdir / "report.html",
        title=f"{workdir.name}: {config.steps:,} steps",
        config=plain(config),
        versions=workdirs.versions(),
        history=metrics.read(workdir / metrics.FILE_NAME),
        retrieval=panel,
        zero_shot=class_sets,
        timing=dict(clock.seconds),
    )


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


def _files(pattern):
    """Paths of a glob pattern, sorted."""
    import glob

    found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not found:
        raise FileNotFoundError(f"--images={pattern} matches no file; quote it from the shell.")
    return found


def _lines(path):
    """The lines of a text file that are not blank."""
    if not path.is_file():
        raise FileNotFoundError(f"--texts={path}: there is no such file.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--texts={path} is not UTF-8: {error}.") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"--texts={path} holds no text.")
    return lines
