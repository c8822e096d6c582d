"""One of several processes that save or restore: `python several_processes.py I N PORT FOLDER ACT`.

`test_processes.py` starts all N. Each writes what it saw to FOLDER/ACT-I.json.
"""

import json
import sys
from pathlib import Path

import numpy as np

STEPS = (1, 2, 3)


def values(step):
    """The whole state of a step on the host."""
    rng = np.random.default_rng(step)
    return {
        "split": rng.normal(size=(64, 96)).astype(np.float32),
        "copied": rng.normal(size=(3000,)).astype(np.float32),
        "even": np.full((50, 50), step, np.float32),  # which compresses to next to nothing
        "count": np.int32(step),
    }


def layout(mesh_shape, devices):
    """Shapes and shardings of the state: split by FSDP where it can be."""
    import jax

    from vlrep_jax.parallel import make_mesh, shardings

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), values(0))
    where = shardings(shapes, make_mesh(*mesh_shape, devices), [("split", "fsdp")])
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, where
    )


def placed(step, like):
    import jax

    def make(x, leaf):
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: x[i])

    return jax.tree.map(make, values(step), like)


def holds(state, step):
    """Whether every part that is here is bit for bit that of a step."""
    import jax

    return all(
        np.array_equal(shard.data, whole[shard.index])
        for leaf, whole in zip(jax.tree.leaves(state), jax.tree.leaves(values(step)), strict=True)
        for shard in leaf.addressable_shards
    )


def save(folder):
    from vlrep_jax.checkpoint import Checkpoints
    from vlrep_jax.fingerprint import fingerprints

    like, seen = layout((2, 4), None), {}
    checkpoints = Checkpoints(folder)
    for step in STEPS:
        state = placed(step, like)
        seen[step] = fingerprints(state)
        checkpoints.save(step, state, {"at": step}, {"config": {}})
    checkpoints.finish()
    checkpoints.close()
    return seen


def restore(folder, process):
    """Restores on another mesh, the last process failing to read the newest step; saves anew."""
    import orbax.checkpoint as ocp

    from vlrep_jax.checkpoint import Checkpoints, SaveError

    like, read = layout((4, 2), None), ocp.StandardCheckpointHandler.restore

    def failing(self, path, *args, **options):
        if process == 1 and Path(path).parent.name == "3":
            raise OSError("this host cannot read it")
        return read(self, path, *args, **options)

    ocp.StandardCheckpointHandler.restore = failing
    checkpoints = Checkpoints(folder)
    found = checkpoints.newest_good(like)
    seen = {"step": found.step, "same": holds(found.state, found.step), "notes": found.notes}
    save = ocp.AsyncCheckpointer.save

    def refused(self, *args, **options):  # a problem of one is a problem of both
        if process == 1:
            raise OSError("no space on this host")

    ocp.AsyncCheckpointer.save = refused
    try:
        checkpoints.save(5, placed(5, like), {}, {"config": {}})
    except SaveError as error:
        seen["error"] = str(error)
    ocp.AsyncCheckpointer.save = save
    checkpoints.save(6, placed(6, like), {"at": 6}, {"config": {}})
    checkpoints.finish()
    checkpoints.close()
    return seen


def main(process, count, port, folder, act):
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = f"127.0.0.1:{port}"
    jax.distributed.initialize(
        address,
        num_processes=count,
        process_id=process,
        coordinator_bind_address=address,
        initialization_timeout=60,
        shutdown_timeout_seconds=15,
    )
    seen = save(folder) if act == "save" else restore(folder, process)
    (folder / f"{act}-{process}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    process, count, port, folder, act = sys.argv[1:]
    main(int(process), int(count), int(port), Path(folder), act)
