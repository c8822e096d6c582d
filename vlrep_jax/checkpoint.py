"""Orbax checkpoints of a work directory: the train state, the data position, and what made them.

WORKDIR/checkpoints/<step>/{state,data,meta}
"""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies


class Checkpoints:
    """Saves asynchronously and atomically; keeps the newest `keep` steps.

    Attributes:
      directory: WORKDIR/checkpoints, made where it is missing.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 3, read_only: bool = False):
        # Orbax takes absolute paths only.
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.directory,
            # Cleaning up removes what a training run beside this process is about to finish.
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.LatestN(keep),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
            ),
        )

    def steps(self) -> list[int]:
        """The steps on disk, oldest first; a directory without a finished checkpoint is none."""
        finished = "_CHECKPOINT_METADATA"
        return sorted(
            step
            for step in self._manager.all_steps()
            if (self.directory / str(step) / finished).exists()
        )

    def save(self, step: int, state: Any, data_state: dict, meta: dict) -> None:
        """Begins to save; the state may be changed or donated as soon as this returns.

        Args:
          step: steps done; a step that is on disk already is left as it is.
          state: pytree of arrays.
          data_state, meta: JSON values.
        """
        if step in self.steps():
            return
        unfinished = self.directory / str(step)
        if unfinished.exists():  # it would count as this step, and keep it from being saved
            unfinished.rename(self.directory / f"{step}.unfinished-{time.time_ns()}")
            self._manager.reload()
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
          ValueError: the checkpoint is damaged, or of another model.
        """
        parts = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore()
        )
        restored = self._restore(step, parts)
        return restored.state, restored.data

    def meta(self, step: int) -> dict:
        """What was saved as `meta` at a step; errors as `restore`."""
        return self._restore(step, ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def parameter_shapes(self, step: int) -> dict:
        """`parameters` as nested dicts of jax.ShapeDtypeStruct; errors as `restore`."""
        _, tree = self._parameters(step)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    def parameters(self, step: int) -> dict:
        """The model's parameters at a step on the host, whatever the model: nested dicts of arrays.

        They are the moving average where the run keeps one. Errors as `restore`.
        """
        name, tree = self._parameters(step)
        args = ocp.args.PyTreeRestore(
            item={name: tree},
            restore_args=jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), {name: tree}
            ),
            partial_restore=True,
        )
        return self._reading(step, lambda reader, path: reader.restore(path, args=args))[name]

    def _parameters(self, step):
        """(name in the state, tree of metadata) of the parameters that evaluations use."""
        saved = self._reading(step, lambda reader, path: reader.metadata(path).item_metadata.tree)
        name = "ema" if saved.get("ema") else "params"
        return name, saved[name]

    def close(self) -> None:
        """Waits for what is being saved."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _restore(self, step, parts):
        return self._checked(step, lambda: self._manager.restore(step, args=parts))

    def _reading(self, step, read):
        """`read` on the saved state itself, where its structure is not known beforehand."""
        with ocp.PyTreeCheckpointer() as reader:
            return self._checked(step, lambda: read(reader, self.directory / str(step) / "state"))

    def _checked(self, step, read):
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise FileNotFoundError(
                f"No checkpoint of step {step} in {self.directory}; there are: {known}."
            )
        try:
            return read()
        except Exception as error:  # Orbax and TensorStore raise anything on damaged files
            first_line = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
            raise ValueError(
                f"{self.directory / str(step)} is damaged, or of another model "
                f"({type(error).__name__}: {first_line}). Evaluate another --step, or move that "
                "directory away to continue from an older one."
            ) from error
