"""Steps whose loss or gradient is not finite: counted, written down, and too many end the run."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from vlrep_jax.workdirs import write_json

FOLDER = "bad_batches"


class Skipped:
    """What became of the steps of a run, over all its sessions; the same on every process.

    Attributes:
      total: steps that were skipped since step 0.
      in_a_row: how many of them are the newest steps.
    """

    def __init__(self, workdir: Path, most: int, say: Callable[[str], None]):
        """Counts from nothing.

        Args:
          most: so many steps in a row that are skipped end the run.
          say: told of each.
        """
        self._folder, self._most, self._say = workdir / FOLDER, most, say
        self.total = self.in_a_row = 0

    def state(self) -> dict[str, int]:
        """What `restore` takes, of JSON values."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes on counting from a state that was saved."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def look(
        self, step: int, metrics: Mapping[str, jax.Array], keys: Callable[[], list[str]]
    ) -> None:
        """Looks at the result of the next step.

        Args:
          step: steps done with it.
          metrics: of the train step.
          keys: of this process's samples in the step's batch; asked for where it was skipped.

        Raises:
          FloatingPointError: too many steps in a row were skipped, or a parameter is not finite.
        """
        loss, gradient, parameters, skipped = jax.device_get(
            [metrics[name] for name in ("loss", "gradient_norm", "parameter_norm", "skipped")]
        )
        if not skipped:
            self.in_a_row = 0
            if not np.isfinite(parameters):
                raise FloatingPointError(
                    f"parameter_norm is {parameters} after step {step}, which is not saved. Start "
                    "again from the newest checkpoint with a lower config.schedule.peak, or a "
                    "config.clip_norm, in another --workdir."
                )
            return
        self.total, self.in_a_row = self.total + 1, self.in_a_row + 1
        path = self._write(step, loss, gradient, keys())
        self._say(
            f"Step {step} was skipped: its loss is {loss}, the norm of its gradient {gradient}. "
            f"The batch is written down in {path}."
        )
        if self.in_a_row >= self._most:
            raise FloatingPointError(
                f"The loss or gradient was not finite in {self.in_a_row} steps in a row, the last "
                f"of them step {step} (config.max_skipped={self._most}); none of them changed the "
                f"parameters. Look at the batches in {self._folder}; a lower config.schedule.peak, "
                "or a config.clip_norm, in another --workdir may help."
            )

    def _write(self, step, loss, gradient, keys):
        self._folder.mkdir(exist_ok=True)
        process = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self._folder / f"{step}{process}.json"
        write_json(
            path, {"step": step, "loss": str(loss), "gradient_norm": str(gradient), "keys": keys}
        )
        return path
