"""Reading a checkpoint into the host's memory, whatever its structure and wherever it was saved.

A process reads for itself: of many that are one run, one may, and none waits for another.
"""

import math
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from vlrep_jax.checkpoint import files
from vlrep_jax.checkpoint.files import Damaged
from vlrep_jax.checkpoint.leaves import compare, host_fingerprints, leaves_of, listing
from vlrep_jax.rules import path_of

PART_BYTES = 256 << 20  # of arrays that `check` holds at a time


def check(directory: Path, step: int) -> None:
    """Reads a step, some arrays at a time, and compares it with its record.

    A step that passes can be restored. One whose arrays are whole but whose description of them is
    not does not pass, though training may still get it restored.

    Raises:
      Damaged: it is not what was saved.
    """
    saved, tree = files.read_record(directory, step)["leaves"], _tree(directory, step)
    there = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    unpaired = saved.keys() ^ there.keys()
    if unpaired:
        raise Damaged(f"{listing(unpaired)} in its state alone, or in its record alone")
    for part in _parts(there):
        found = _read(directory, step, _without_others(tree, part), as_training=True)
        found = {
            path_of(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(found)
            if leaf is not ocp.PLACEHOLDER
        }
        part = {path: saved[path] for path in part}
        compare(part, leaves_of(found, host_fingerprints(found)))


def parameters(directory: Path, step: int) -> dict:
    """The parameters that evaluations use, as nested dicts of arrays; errors as `check`."""
    saved = files.read_record(directory, step)["leaves"]
    name, tree = _parameters(directory, step)
    found = _read(directory, step, {name: tree}, partial=True)
    saved = {path: leaf for path, leaf in saved.items() if path.startswith(f"{name}/")}
    compare(saved, leaves_of(found, host_fingerprints(found)))
    return found[name]


def parameter_shapes(directory: Path, step: int) -> dict:
    """`parameters` as nested dicts of jax.ShapeDtypeStruct, no array read; errors as `check`."""
    _, tree = _parameters(directory, step)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def reading(read, directory: Path):
    """`read()`, where anything that goes wrong is damage; the directory is called as it is here."""
    try:
        return read()
    except Exception as error:  # Orbax and TensorStore raise anything on damaged files
        raise Damaged(f"its state cannot be read ({words(error, directory)})") from error


def words(error: Exception, directory: Path) -> str:
    """An error in one short line, with a directory called as it is here."""
    line = " ".join(str(error).split("\n\n")[0].split())
    line = line.replace(str(directory.absolute()), str(directory))
    if len(line) > 240:  # TensorStore begins with the file and ends with the reason
        line = f"{line[:90]} ... {line[-140:]}"
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _parameters(directory, step):
    """(name in the state, tree of metadata)."""
    saved = _tree(directory, step)
    name = "ema" if saved.get("ema") else "params"
    if name not in saved:
        raise Damaged("its state has no parameters")
    return name, saved[name]


def _tree(directory, step):
    """The tree of metadata of a state, whatever its structure."""
    with closing(ocp.PyTreeCheckpointHandler()) as handler:
        path = directory.absolute() / str(step) / "state"
        return reading(lambda: dict(handler.metadata(path).tree), directory)


def _read(directory, step, tree, *, partial=False, as_training=False):
    """The arrays of a tree of metadata as NumPy's; it may lack others if partial."""
    how = ocp.RestoreArgs(restore_type=np.ndarray)
    if as_training:  # of jax.Arrays Orbax reads a file more, and fails where that is damaged
        cpu = jax.local_devices(backend="cpu")[0]
        how = ocp.ArrayRestoreArgs(sharding=jax.sharding.SingleDeviceSharding(cpu))
    args = ocp.args.PyTreeRestore(
        item=tree,
        restore_args=jax.tree.map(lambda _: how, tree),
        partial_restore=partial,
    )
    # The handler alone: a checkpointer would wait for all processes of the run to read with it.
    with closing(ocp.PyTreeCheckpointHandler()) as handler:
        path = directory.absolute() / str(step) / "state"
        return reading(lambda: handler.restore(path, args=args), directory)


def _without_others(tree, paths):
    """A tree with all leaves but those at some paths marked as not to be read."""

    def keep(path, leaf):
        return leaf if path_of(path) in paths else ocp.PLACEHOLDER

    return jax.tree_util.tree_map_with_path(keep, tree)


def _parts(leaves):
    """Lists of paths whose arrays together are about PART_BYTES, or one array that is more."""
    part, total = [], 0
    for path, leaf in leaves.items():
        size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        if part and total + size > PART_BYTES:
            yield part
            part, total = [], 0
        part.append(path)
        total += size
    if part:
        yield part
