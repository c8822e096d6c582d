"""Saving to and restoring from a work directory's checkpoints, by all processes of a run together.

Orbax writes and reads the arrays. Everything else, which steps there are, what they are of, which
stay and what is done about damage, is decided here and in `files`, so that it can be read.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from vlrep_jax.checkpoint import files, host
from vlrep_jax.checkpoint.files import Damaged
from vlrep_jax.checkpoint.host import reading, words
from vlrep_jax.checkpoint.leaves import check_like, compare, leaves_of
from vlrep_jax.fingerprint import fingerprints
from vlrep_jax.processes import first_problem, from_first
from vlrep_jax.retention import Keep


class SaveError(OSError):
    """A step that could not be saved; earlier steps are as they were."""


class Restored(NamedTuple):
    """What `Checkpoints.newest_good` found.

    step: whose state it is. state: laid out as asked. data: the data position.
    record: all that was saved beside the state. notes: a line on each newer step that is damaged.
    """

    step: int
    state: Any
    data: dict
    record: dict
    notes: list[str]


class Checkpoints:
    """Saves asynchronously and atomically; restores only what is, bit for bit, what was saved.

    `save`, `finish` and everything that restores must be called by all processes at the same point;
    a problem of one is a problem of all, so that none is left waiting for another.

    Attributes:
      directory: WORKDIR/checkpoints, made where it is missing.
      cleared: names of what a crashed run had begun to save or to remove, now deleted.
    """

    def __init__(
        self, workdir: str | Path, *, keep: Keep | int | None = None, read_only: bool = False
    ):
        """Opens a work directory.

        Args:
          keep: which steps stay; a number keeps as many of the newest.
          read_only: a training run may be at work there: nothing is made, cleared or moved.
        """
        self.directory = Path(workdir) / "checkpoints"
        self._keep = keep if isinstance(keep, Keep) else Keep() if keep is None else Keep(keep)
        self._read_only, self._saver, self._saving = read_only, None, None
        self._metrics: dict[int, dict] = {}  # of the steps on disk
        self._is_first = jax.process_index() == 0
        self.cleared: list[str] = []
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self._is_first:
                self.cleared = files.clear(self.directory)

    def steps(self) -> list[int]:
        """The steps on disk, oldest first; a directory without a finished checkpoint is none."""
        return [s for s in files.steps_in(self.directory) if files.is_finished(self.directory, s)]

    # Saving.

    def save(
        self, step: int, state: Any, data_state: dict, meta: dict, metrics: dict | None = None
    ) -> None:
        """Begins to save; the state may be changed or donated as soon as this returns.

        Args:
          step: steps done; a step that is on disk already is left as it is.
          state: pytree of arrays.
          data_state, meta: JSON values.
          metrics: {name: number} of the evaluation at this step, if there was one.

        Raises:
          SaveError: the save before this one failed (this one is then not begun), or this one did.
        """
        self.finish()
        if from_first(self._make_room(step) if self._is_first else None):
            return
        record = {
            "step": step,
            "saved_at": time.time(),
            "data": data_state,
            "meta": meta,
            "metrics": {
                k: float(v) if math.isfinite(v) else None for k, v in (metrics or {}).items()
            },
            "leaves": leaves_of(state, fingerprints(state)),
        }
        self._saving = step
        problem = ""
        try:
            if self._saver is None:
                self._saver = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
            self._saver.save(
                self.directory.absolute() / str(step),  # Orbax takes no others
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    record=ocp.args.JsonSave(files.sealed(record)),
                ),
            )
        except Exception as error:  # of the file system, or of Orbax about it
            problem = words(error, self.directory)
        self._metrics[step] = record["metrics"]
        self._end_failed(first_problem(problem))

    def finish(self) -> None:
        """Waits for what is being saved, then removes the steps that are not kept.

        Raises:
          SaveError: it could not be saved.
        """
        if self._saving is None:
            return
        self._end_failed(first_problem(self._waited()))
        self._saving = None
        self._prune()

    def close(self) -> None:
        """As `finish`, but waits for no other process: one of them may be gone."""
        if self._saving is not None:
            self._end_failed(self._waited())
            self._saving = None
            self._prune()
        if self._saver is not None:
            self._saver.close()
            self._saver = None

    def _make_room(self, step):
        """Whether a step is there already; what only has its name is set aside."""
        if step in self.steps():
            return True
        if (self.directory / str(step)).exists():
            files.set_aside(self.directory, [step], "damaged")
        return False

    def _waited(self):
        """What went wrong with this process's part of the save, once it has ended."""
        try:
            self._saver.wait_until_finished()
        except Exception as error:
            return words(error, self.directory)
        # The other processes' words, where one of them failed, come too late to be asked for.
        return "" if files.is_finished(self.directory, self._saving) else "it was not finished"

    def _end_failed(self, problem):
        if not problem:
            return
        step, self._saving, self._saver = self._saving, None, None
        self._metrics.pop(step, None)
        if self._is_first:
            files.clear_failed(self.directory)
        kept = ", ".join(map(str, self.steps())) or "none"
        raise SaveError(f"Step {step} could not be saved ({problem}). Saved before: {kept}.")

    def _prune(self):
        if not self._is_first:
            return
        steps = self.steps()
        for step in steps:
            if step not in self._metrics:
                self._metrics[step] = files.metrics_of(self.directory, step)
        for step in set(steps) - self._keep.kept({step: self._metrics[step] for step in steps}):
            files.remove(self.directory, step)
            del self._metrics[step]

    # Restoring.

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """The state and the data position at a step.

        Args:
          step: one of `steps()`.
          like: pytree of jax.ShapeDtypeStruct with shardings: the state is laid out as it says,
            on any number of devices.

        Raises:
          FileNotFoundError: no such step.
          ValueError: the checkpoint is damaged, or of another state, every difference named.
        """
        state, record = self._named(step, lambda: self._restored(step, like))
        return state, record["data"]

    def newest_good(self, like: Any) -> Restored | None:
        """The newest step that holds what was saved; None where there is no step at all.

        Newer steps, which are damaged, are set aside unless this only reads.

        Args:
          like: as of `restore`.

        Raises:
          ValueError: every step is damaged (nothing is moved then), or the newest good one is of
            another state.
        """
        steps = from_first(files.steps_in(self.directory)[::-1])
        reasons = {}
        for step in steps:
            try:
                state, record = self._restored(step, like)
                break
            except Damaged as error:
                reasons[step] = str(error)
        else:
            if not steps:
                return None
            listing = "; ".join(f"{step}: {reason}" for step, reason in reasons.items())
            raise ValueError(
                f"No checkpoint in {self.directory} is whole ({listing}). Restore the directory "
                "from a copy, or train in another --workdir."
            )
        notes = [f"Step {bad} is damaged: {reason}." for bad, reason in reasons.items()]
        if reasons and not self._read_only:
            place = self._set_aside(list(reasons), "damaged")
            notes = [
                f"{note} It was moved to {place.name}/{bad}."
                for bad, note in zip(reasons, notes, strict=True)
            ]
        return Restored(step, state, record["data"], record, notes)

    def roll_back(self, step: int, like: Any) -> Restored:
        """The state at a step, with all newer steps set aside; errors as `restore`."""
        state, record = self._named(step, lambda: self._restored(step, like))
        newer = from_first([s for s in files.steps_in(self.directory) if s > step])
        notes = []
        if newer:
            place = self._set_aside(newer, "rolled-back")
            notes = [f"Rolled back to step {step}: {', '.join(map(str, newer))} went to {place}."]
        return Restored(step, state, record["data"], record, notes)

    def meta(self, step: int) -> dict:
        """What was saved as `meta` at a step; errors as `restore`."""
        return self._named(step, lambda: files.read_record(self.directory, step))["meta"]

    def parameter_shapes(self, step: int) -> dict:
        """`parameters` as nested dicts of jax.ShapeDtypeStruct; errors as `restore`."""
        return self._named(step, lambda: host.parameter_shapes(self.directory, step))

    def parameters(self, step: int) -> dict:
        """The model's parameters at a step on the host, whatever the model: nested dicts of arrays.

        They are the moving average where the run keeps one. Errors as `restore`.
        """
        return self._named(step, lambda: host.parameters(self.directory, step))

    def _restored(self, step, like):
        """(state, record) of a step: the same outcome on every process."""
        record = _together(lambda: files.read_record(self.directory, step))
        check_like(record["leaves"], like, self.directory / str(step))
        path = self.directory.absolute() / str(step) / "state"
        args = ocp.args.StandardRestore(like)

        def read():
            # The handler alone: a checkpointer would wait for processes that failed to read.
            handler = ocp.StandardCheckpointHandler()
            try:
                return handler.restore(path, args=args)
            finally:
                handler.close()

        state = _together(lambda: reading(read, self.directory))
        found = leaves_of(state, fingerprints(state))
        # Where arrays are replicated each process has compared its own copies.
        _together(lambda: compare(record["leaves"], found))
        return state, record

    def _set_aside(self, steps: Sequence[int], why: str) -> Path:
        name = files.set_aside(self.directory, steps, why).name if self._is_first else None
        for step in steps:
            self._metrics.pop(step, None)
        return self.directory / from_first(name)  # the others go on when it is done

    def _named(self, step: int, read: Callable):
        """`read`, its errors with the step and what to do."""
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise FileNotFoundError(
                f"No checkpoint of step {step} in {self.directory}; there are: {known}."
            )
        try:
            return read()
        except Damaged as error:
            raise ValueError(
                f"{self.directory / str(step)} is damaged: {error}. Name another step, or let "
                "vlrep train continue from an older one."
            ) from error


def _together(read):
    """`read()`, or Damaged on every process where it was damaged on one."""
    value, problem = None, ""
    try:
        value = read()
    except Damaged as error:
        problem = str(error)
    problem = first_problem(problem)
    if problem:
        raise Damaged(problem)
    return value
