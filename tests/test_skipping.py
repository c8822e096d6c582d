"""Steps whose loss or gradient is not finite change nothing, are counted, and end a run in time."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from two_processes import FSDP, host_batch, small_config

from vlrep_jax.experiment import make_experiment
from vlrep_jax.skipping import Skipped

WIRINGS = {
    "data parallel": {},
    "fsdp": FSDP,
    "pmap": {"parallel.wiring": "pmap"},
    "chunks": {"chunks": 2},
    "ema": {"ema_decay": 0.9},
}


def config_of(**changed):
    config = small_config()
    with config.unlocked():
        config.update_from_flattened_dict(changed)
    return config


def poisoned(batch, kind):
    """A batch whose loss is not finite, of pairs that weigh nan or inf."""
    weights = np.ones(len(batch["text"]), np.float32)
    weights[3] = kind
    return batch | {"weights": weights}


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_skipped_step_changes_no_bit_but_its_count(wiring):
    experiment = make_experiment(config_of(**WIRINGS[wiring]))
    state = experiment.init()
    good = host_batch(0) | {"weights": np.ones(len(host_batch(0)["text"]), np.float32)}
    state, metrics = experiment.step(state, experiment.put(good))
    assert metrics["skipped"] == 0
    before = jax.device_get(state)
    for kind in (math.nan, math.inf):
        state, metrics = experiment.step(state, experiment.put(poisoned(good, kind)))
        assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"])
    after = jax.device_get(state)
    assert np.ravel(after.step)[0] == np.ravel(before.step)[0] + 2
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    state, metrics = experiment.step(state, experiment.put(good))
    assert metrics["skipped"] == 0
    changed = jax.tree.map(lambda a, b: (a != b).any(), jax.device_get(state).params, after.params)
    assert any(jax.tree.leaves(changed))


def result(skipped, parameters=1.0):
    loss = math.nan if skipped else 1.0
    values = {"loss": loss, "gradient_norm": 2.0, "parameter_norm": parameters, "skipped": skipped}
    return {name: jnp.float32(value) for name, value in values.items()}


def test_skipped_steps_are_counted_written_down_and_too_many_in_a_row_end_the_run(tmp_path):
    said = []
    skipped = Skipped(tmp_path, 3, said.append)
    for step, bad in enumerate((0, 1, 1, 0, 1, 1), 1):
        skipped.look(step, result(bad), step - 1, lambda _: ["a", "b"])
    assert skipped.state() == {"total": 4, "in_a_row": 2, "spikes": 0} and len(said) == 4
    assert said[0].startswith("Step 2 was skipped: its loss is nan, the norm of its gradient 2.0.")
    held = json.loads((tmp_path / "bad_batches" / "2.json").read_text())
    told = {"loss": "nan", "gradient_norm": "2.0", "parameter_norm": "1.0"}
    assert held == {"step": 2, "batch": 1, **told, "keys": ["a", "b"]}
    # In another session too.
    again = Skipped(tmp_path, 3, said.append)
    again.restore(skipped.state())
    with pytest.raises(FloatingPointError, match=r"3 steps in a row, .* step 7 .*max_skipped=3"):
        again.look(7, result(1), 6, lambda _: [])
    names = sorted(path.name for path in (tmp_path / "bad_batches").iterdir())
    assert names == ["2.json", "3.json", "5.json", "6.json", "7.json"]


def test_parameters_that_overflow_end_the_run_at_once(tmp_path):
    with pytest.raises(FloatingPointError, match="parameter_norm is inf after step 1"):
        Skipped(tmp_path, 3, print).look(1, result(0, math.inf), 0, list)


def test_pictures_of_nothing_but_zeros_give_numbers_and_move_the_parameters():
    """Also where none of them counts: nothing is divided by their norm or their number."""
    experiment = make_experiment(config_of(**{"image.mean": (0.0, 0.0, 0.0)}))
    state, batch = experiment.init(), host_batch(0)
    zeros = {"image": np.zeros_like(batch["image"]), "text": np.zeros_like(batch["text"])}
    for weight in (1, 1, 0):  # the first step of the warm-up has a rate of 0
        before = jax.device_get(state.params)
        rows = {"weights": np.full(len(batch["text"]), weight, np.float32)}
        state, metrics = experiment.step(state, experiment.put(batch | zeros | rows))
        assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])
    after = jax.device_get(state.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    changed = jax.tree.map(lambda a, b: (a != b).any(), after, before)
    assert any(jax.tree.leaves(changed))
