"""What a run left behind, to be compared with what the undisturbed run did."""

import jax
import numpy as np

from vlrep_jax import metrics
from vlrep_jax.checkpoint import Checkpoints


def result(workdir):
    """(newest step, its parameters, [(step, loss)] of every step) of a work directory."""
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.steps()[-1]
    parameters = checkpoints.parameters(step)
    checkpoints.close()
    rows = [row for row in metrics.read(workdir) if "train/loss" in row]
    return step, parameters, [(row["step"], row["train/loss"]) for row in rows]


def assert_shown(workdir, losses):
    """TensorBoard shows every step's loss once, as metrics.jsonl has it."""
    from test_metrics import shown

    points = [(step, float(np.float32(loss))) for step, loss in losses]
    assert shown(workdir, "train/loss") == points


def assert_same(found, expected):
    """The same step, bit-identical parameters, and every step's loss once."""
    assert found[0] == expected[0] and found[2] == expected[2]
    for (path, one), other in zip(
        jax.tree.leaves_with_path(found[1]), jax.tree.leaves(expected[1]), strict=True
    ):
        np.testing.assert_array_equal(one, other, err_msg=jax.tree_util.keystr(path))
