"""One of two processes that train together: `python two_processes.py PROCESS PORT OUT`.

Writes {case: losses} as JSON. `test_parallel.py` starts both, and takes the same batches.
"""

import json
import sys

import numpy as np

STEPS, BATCH = 5, 16
CHANGES = {
    "jit": {"parallel.data": 4, "parallel.fsdp": 2},
    "pmap": {"parallel.wiring": "pmap"},
}


def host_batch(step):
    """The global batch of a step; two of its pairs are one, on different devices."""
    rng = np.random.default_rng(step)
    ids = np.arange(BATCH, dtype=np.int32)
    ids[-1] = ids[0]
    return {
        "image": rng.integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8),
        "text": rng.integers(0, 300, (BATCH, 8), dtype=np.int32),
        "pair_ids": ids,
    }


def small_config(**changed):
    """The tiny recipe without dropout, whose masks follow the shards."""
    from tiny_recipe import config

    still = {"model.image.dropout": 0.0, "model.text.dropout": 0.0, "ema_decay": 0.0}
    # Where there is hardly a gradient Adam would divide rounding noise by its own size; eps stands
    # above it.
    return config(**still | {"optimizer.eps": 1e-3} | changed)


def main(process, port, out):
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = f"127.0.0.1:{port}"
    jax.distributed.initialize(
        address,
        num_processes=2,
        process_id=process,
        coordinator_bind_address=address,  # the default listens on every interface
        initialization_timeout=60,
        shutdown_timeout_seconds=15,
    )
    from vlrep_jax.experiment import make_experiment

    assert (jax.process_count(), jax.local_device_count()) == (2, 4)
    rows = slice(process * BATCH // 2, (process + 1) * BATCH // 2)
    losses = {}
    for name, changed in CHANGES.items():
        experiment = make_experiment(small_config(**changed))
        state, losses[name] = experiment.init(), []
        for step in range(STEPS):
            own = {key: value[rows] for key, value in host_batch(step).items()}
            state, metrics = experiment.step(state, experiment.put(own))
            losses[name].append(float(metrics["loss"]))
    with open(out, "w", encoding="utf-8") as file:
        json.dump(losses, file)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
