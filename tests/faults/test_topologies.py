"""Losses and evaluations of one run over processes x devices 1x4, 2x2 and 4x1, in both wirings.

`VLREP_FAULTS=full` runs it. The short form is `test_parallel.py::test_two_processes_train_as_one`;
that global batches are the same on 4, 2 and 8 hosts is tested in `test_data_pipeline.py`.
"""

import os

import numpy as np
import pytest
from hosts import Run
from outcome import assert_same, result

from vlrep_jax import metrics

pytestmark = pytest.mark.skipif(
    os.environ.get("VLREP_FAULTS") != "full", reason="VLREP_FAULTS=full runs it"
)
STEPS = 20
WIRINGS = {
    "jit": (),
    "fsdp": ("--config.parallel.data=2", "--config.parallel.fsdp=2"),
    "pmap": ("--config.parallel.wiring=pmap",),
}
# Masks of dropout follow the shards; and without an eps above it Adam would divide the rounding of
# a gradient that is hardly there by its own size.
STILL = (
    *("--config.model.image.dropout=0.0", "--config.model.text.dropout=0.0"),
    *("--config.optimizer={'name': 'adamw', 'weight_decay': 0.1, 'eps': 1e-3}",),
    *(f"--config.steps={STEPS}", "--config.eval_every=10", "--config.checkpoint_every=20"),
    "--config.evals={'own': {'name': 'retrieval', 'source': {'name': 'squares', 'count': 16}}}",
)


def rows(workdir, wiring, processes, devices, programs):
    """Losses and evaluations by step of one run."""
    options = {"count": processes, "devices": devices, "cache": programs}
    with Run(workdir, *STILL, *WIRINGS[wiring], **options) as run:
        assert run.codes()[0] == [0] * processes, run.text()[-4000:]
    kept = lambda name: name == "train/loss" or name.startswith("own/")  # noqa: E731
    return [{k: v for k, v in row.items() if kept(k)} for row in metrics.read(workdir)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, programs):
    """Of one process with four devices, jit."""
    workdir = tmp_path_factory.mktemp("alone")
    return rows(workdir, "jit", 1, 4, programs)


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (2, 2), (4, 1)])
def test_every_topology_gives_the_losses_of_one_process(
    processes, devices, wiring, alone, tmp_path, programs
):
    found = rows(tmp_path, wiring, processes, devices, programs)
    assert [row.keys() for row in found] == [row.keys() for row in alone]
    assert sum("train/loss" in row for row in found) == STEPS
    worst = 0.0
    for one, other in zip(found, alone, strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6, err_msg=name)
            worst = max(worst, abs(one[name] - other[name]) / max(abs(other[name]), 1e-9))
    print(f"{wiring} at {processes}x{devices}: at most {worst:.1e} from one process")


def test_the_same_topology_gives_the_same_bits(tmp_path, programs):
    for name in ("one", "other"):
        rows(tmp_path / name, "fsdp", 2, 2, programs)
    assert_same(result(tmp_path / "one"), result(tmp_path / "other"))
