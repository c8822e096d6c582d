"""Steps whose loss or gradient is no number, or whose loss is a spike: counted, written down, and
too many of those that were skipped end the run. What a step does about itself is in `train`."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from vlrep_jax.workdirs import write_json

FOLDER = "bad_batches"


class Spike(Exception):
    """The loss of a step is a spike, and the run is to go back."""

    def __init__(self, step: int, batch: int, words: str):
        """step: whose loss it is. batch: number of its batch. words: on how high it is."""
        super().__init__(f"The loss of step {step} is a spike: {words}")
        self.step, self.batch = step, batch


class Skipped:
    """What became of the steps of a run, over all its sessions; the same on every process.

    Attributes:
      total: steps that were skipped since step 0.
      in_a_row: how many of them are the newest steps.
      spikes: steps since step 0 whose loss was a spike.
    """

    def __init__(self, workdir: Path, most: int, say: Callable[[str], None], policy: str = "off"):
        """Counts from nothing.

        Args:
          most: so many steps in a row that are skipped end the run.
          say: told of each.
          policy: one of `spikes.POLICIES`.
        """
        self._folder, self._most, self._say = workdir / FOLDER, most, say
        self._policy = policy
        self.total = self.in_a_row = self.spikes = 0

    def state(self) -> dict[str, int]:
        """What `restore` takes, of JSON values."""
        return {"total": self.total, "in_a_row": self.in_a_row, "spikes": self.spikes}

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes on counting from a state that was saved."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]
        self.spikes = state.get("spikes", 0)

    def look(
        self,
        step: int,
        metrics: Mapping[str, jax.Array],
        batch: int,
        keys: Callable[[int], list[str]],
    ) -> None:
        """Looks at the result of the next step.

        Args:
          step: steps done with it.
          metrics: of the train step.
          batch: number of the step's batch.
          keys: number of a batch -> keys of this process's samples; asked where one is bad.

        Raises:
          FloatingPointError: too many steps in a row were skipped, or a parameter is not finite.
          Spike: one was found and the policy is 'rollback'.
        """
        looked = ("loss", "gradient_norm", "parameter_norm", "skipped", "spike", "loss_z")
        found = jax.device_get({name: metrics[name] for name in looked if name in metrics})
        skipped, is_spike = found["skipped"], found.get("spike", 0)
        if skipped or is_spike:
            path = self._write(step, batch, found, keys)
        if is_spike:
            self.spikes += 1
            words = (
                f"{found['loss']:.6g}, {found['loss_z']:.1f} robust deviations above the losses "
                f"before it. {path}"
            )
            if self._policy == "rollback":
                raise Spike(step, batch, words)
            done = "Step {} was skipped: its loss" if skipped else "The loss of step {}"
            self._say(f"{done.format(step)} is a spike: {words}")
        elif skipped:
            self._say(
                f"Step {step} was skipped: its loss is {found['loss']}, the norm of its gradient "
                f"{found['gradient_norm']}. {path}"
            )
        if skipped:
            self._count(step)
            return
        self.in_a_row = 0
        if not np.isfinite(found["parameter_norm"]):
            raise FloatingPointError(
                f"parameter_norm is {found['parameter_norm']} after step {step}, which is not "
                "saved. Start again from the newest checkpoint with a lower config.schedule.peak, "
                "or a config.clip_norm, in another --workdir."
            )

    def _count(self, step):
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        if self.in_a_row < self._most:
            return
        reason = "was not finite" if self._policy == "off" else "was not finite, or a spike,"
        raise FloatingPointError(
            f"The loss or gradient {reason} in {self.in_a_row} steps in a row, the last "
            f"of them step {step} (config.max_skipped={self._most}); none of them changed the "
            f"parameters. Look at the batches in {self._folder}; a lower config.schedule.peak, "
            "or a config.clip_norm, in another --workdir may help."
        )

    def _write(self, step, batch, found, keys):
        """Writes a batch down; returns a sentence on where."""
        # After going back, a step may be bad again, with another batch.
        name = f"{step}" if batch == step - 1 else f"{step}-batch-{batch}"
        process = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self._folder / f"{name}{process}.json"
        told = {key: str(value) for key, value in found.items() if key not in ("skipped", "spike")}
        try:
            self._folder.mkdir(exist_ok=True)
            write_json(path, {"step": step, "batch": batch, **told, "keys": keys(batch)})
        except OSError as error:  # a full disk, or data that cannot be read again
            return f"Its batch could not be written down ({error})."
        return f"The batch is written down in {path}."
