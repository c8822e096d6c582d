"""Orbax checkpoints of a work directory: the train state, the data position, and what made them.

WORKDIR/checkpoints/<step>/{state,data,meta}
"""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies


class Checkpoints:
    """Saves asynchronously and atomically; keeps the newest `keep` steps.

    Attributes:
      directory: WORKDIR/checkpoints, made where it is missing.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 3):
        # Orbax takes absolute paths only.
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.LatestN(keep),
                cleanup_tmp_directories=True,
            ),
        )

    def steps(self) -> list[int]:
        """The steps on disk, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, data_state: dict, meta: dict) -> None:
        """Begins to save; the state may be changed or donated as soon as this returns.

        Args:
          step: steps done; a step that is on disk already is left as it is.
          state: pytree of arrays.
          data_state, meta: JSON values.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data_state),
                meta=ocp.args.JsonSave(meta),
            ),
            force=True,
        )

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """The state and the data position at a step.

        Args:
          step: one of `steps()`.
          like: pytree of jax.ShapeDtypeStruct with shardings: the state is laid out as it says,
            on any number of devices.

        Raises:
          FileNotFoundError: no such step.
        """
        self._check(step)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.data

    def meta(self, step: int) -> dict:
        """What was saved as `meta` at a step."""
        self._check(step)
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return restored.meta

    def close(self) -> None:
        """Waits for what is being saved."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check(self, step):
        if step not in self._manager.all_steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise FileNotFoundError(f"No checkpoint of step {step} in {self.directory}: {known}.")
