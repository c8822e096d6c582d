"""One of two processes that train together: `python two_processes.py PROCESS PORT FOLDER`.

FOLDER/losses-PROCESS.json: of jit steps on the batches below. FOLDER/run: a whole run under pmap,
with evaluation, checkpoint and report. `test_parallel.py` starts both and does the same alone.
"""

import json
import sys
from pathlib import Path

import numpy as np

STEPS, BATCH = 5, 16
FSDP = {"parallel.data": 4, "parallel.fsdp": 2}


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


def pmap_run(workdir):
    """Trains under pmap, from nothing to the report, then finds the run finished."""
    from tiny_recipe import Squares

    from vlrep_jax import run
    from vlrep_jax.data.sources import SOURCES

    SOURCES["squares"] = Squares
    evals = {"own": {"name": "retrieval", "source": {"name": "squares", "count": 16}}}
    for _ in range(2):
        assert run.train(small_config(evals=evals, **{"parallel.wiring": "pmap"}), workdir)


def main(process, port, folder):
    from vlrep_jax.cluster import joined

    limits = {"join_s": 60, "heartbeat_s": 100}
    with joined(f"127.0.0.1:{port}", 2, process, **limits):
        train_both(process, folder)


def train_both(process, folder):
    import jax

    from vlrep_jax.experiment import make_experiment

    assert (jax.process_count(), jax.local_device_count()) == (2, 4)
    rows = slice(process * BATCH // 2, (process + 1) * BATCH // 2)
    experiment, losses = make_experiment(small_config(**FSDP)), []
    state = experiment.init()
    for step in range(STEPS):
        own = {key: value[rows] for key, value in host_batch(step).items()}
        state, metrics = experiment.step(state, experiment.put(own))
        losses.append(float(metrics["loss"]))
    (folder / f"losses-{process}.json").write_text(json.dumps(losses))
    pmap_run(folder / "run")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
