"""Spikes of the loss: told by a robust z-score, and warned of, skipped or gone back from."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import spiking
from test_metrics import shown
from test_skipping import WIRINGS, config_of
from test_train import (
    assert_same_bits,
    rows,
    saved,
    tiny_runs,  # noqa: F401 (a fixture for all tests here)
    train,
)
from tiny_recipe import config
from two_processes import host_batch

from vlrep_jax import goodput, rollbacks, run, spikes
from vlrep_jax.config_keys import check_keys
from vlrep_jax.data.pipeline import Batches
from vlrep_jax.experiment import make_experiment
from vlrep_jax.losses import LOSSES
from vlrep_jax.train import unwatched

# The z-score.


def test_a_score_worked_by_hand():
    window = jnp.array([1.0, 2.0, 3.0, 4.0, 100.0])  # median 3; distances 2, 1, 0, 1, 97: median 1
    z = spikes.robust_z(jnp.float32(9.0), window)
    np.testing.assert_allclose(z, 6 * 0.6745, rtol=1e-6)
    assert spikes.robust_z(jnp.float32(-3.0), window) == -z  # a fall is no spike


def test_of_normal_losses_it_counts_standard_deviations():
    window = 5 + 0.3 * np.random.default_rng(0).normal(size=20_001)
    z = spikes.robust_z(jnp.float32(8.0), jnp.asarray(window, jnp.float32))
    np.testing.assert_allclose(z, 10, rtol=0.02)  # of 20,001 draws the deviation is known to 1 %


def test_there_is_none_before_the_window_is_full_and_none_of_rounding():
    window = spikes.empty(8)
    for loss in np.full(8, 2.0, np.float32):
        assert np.isnan(spikes.robust_z(jnp.float32(1e9), window))
        window = spikes.appended(window, loss)
    assert spikes.robust_z(jnp.float32(2.001), window) < 1  # though none of them differs
    assert spikes.robust_z(jnp.float32(2.1), window) > 10
    assert spikes.appended(window, jnp.float32(7.0)).tolist() == [2.0] * 7 + [7.0]


def test_a_window_is_saved_and_restored_also_into_another_size():
    like = jax.eval_shape(lambda: spikes.empty(4))
    like = jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=jnp.zeros(4).sharding)
    window = spikes.appended(spikes.appended(spikes.empty(3), jnp.float32(1 / 3)), jnp.float32(2))
    assert spikes.saved(window) == [float(np.float32(1 / 3)), 2.0]
    for losses, expected in (
        (spikes.saved(window), [np.nan, np.nan, np.float32(1 / 3), 2]),
        ([1, 2, 3, 4, 5, 6], [3, 4, 5, 6]),
        ([], [np.nan] * 4),
    ):
        np.testing.assert_array_equal(spikes.restored(losses, like), np.float32(expected))


# The step.


@pytest.mark.parametrize("wiring", ("data parallel", "fsdp", "pmap"))
def test_a_spike_is_kept_or_changes_no_bit_as_the_policy_says(wiring):
    batch = host_batch(0)
    ends = {}
    for policy in ("warn", "skip", *(("off",) if wiring == "data parallel" else ())):
        experiment = make_experiment(
            config_of(**WIRINGS[wiring], **{"spikes.policy": policy, "spikes.window": 8})
        )
        state = experiment.init()
        if policy != "off":
            # Losses far below that of an untrained model, and one that is no number.
            assert experiment.abstract_state.losses.sharding.is_fully_replicated
            low = spikes.restored([0.1, 0.2, 0.3] * 3, experiment.abstract_state.losses)
            state = state._replace(losses=low)
        before = jax.device_get(state)
        state, metrics = experiment.step(state, experiment.put(batch))
        ends[policy] = jax.device_get(unwatched(state))
        if policy == "off":
            assert "spike" not in metrics
            continue
        assert metrics["spike"] == 1 and metrics["loss_z"] > 8
        assert metrics["skipped"] == (policy == "skip")
        np.testing.assert_array_equal(
            jax.device_get(state.losses), [*before.losses[1:], np.float32(metrics["loss"])]
        )
        if policy == "skip":
            assert_same_bits(ends[policy], unwatched(before._replace(step=before.step + 1)))
    assert_same_bits(ends["warn"], ends.get("off", ends["warn"]))


# The run. With these, the loss of step 21 jumps.
RUN = {"steps": 26, "checkpoint_every": 8, "schedule.peak": 1e-2}
RUN |= {"spikes.window": 8, "spikes.threshold": 20.0, "ema_decay": 0.0}
WRONG = 20  # number of the batch of step 21


@pytest.fixture
def wrong(monkeypatch):
    """A function that has the loss jump on batches of some numbers."""
    monkeypatch.setitem(LOSSES, "softmax", spiking.softmax)
    plain_next = Batches.__next__

    def of(*numbers):
        def some_marked(batches):
            number = batches.state()["next_batch"]
            batch = plain_next(batches)
            return spiking.marked(batch) if number in numbers else batch

        monkeypatch.setattr(Batches, "__next__", some_marked)

    return of


def spiked(workdir, policy, **changed):
    return train(workdir, **RUN | {"spikes.policy": policy} | changed)


def test_a_spike_is_skipped_told_and_written_down_and_the_run_goes_on(
    wrong, tmp_path, capfd, monkeypatch
):
    wrong(WRONG)
    assert spiked(tmp_path / "whole", "skip")
    said = capfd.readouterr().err
    assert "Step 21 was skipped: its loss is a spike: " in said and "robust deviations" in said
    held = json.loads((tmp_path / "whole" / "bad_batches" / "21.json").read_text())
    assert held["step"] == 21 and held["batch"] == WRONG and len(held["keys"]) == 16
    assert float(held["loss_z"]) > 4
    found = rows(tmp_path / "whole")
    assert [row["train/skipped_steps"] for row in found] == [0] * 20 + [1] * 6
    assert [row["train/spikes"] for row in found] == [0] * 20 + [1] * 6
    # Stopped and continued it finds the same, though the window began in the first session.
    assert not spiked(tmp_path / "parts", "skip", stop=19, monkeypatch=monkeypatch)
    assert spiked(tmp_path / "parts", "skip")
    assert rows(tmp_path / "parts") == found
    changed = RUN | {"spikes.policy": "off"}  # and whether losses were watched can be changed
    assert_same_bits(
        saved(tmp_path / "parts", 26, **changed)[0], saved(tmp_path / "whole", 26, **changed)[0]
    )
    assert spiked(tmp_path / "parts", "off")


def test_too_many_spikes_in_a_row_end_the_run(wrong, tmp_path):
    wrong(WRONG, WRONG + 1)
    with pytest.raises(FloatingPointError, match=r"not finite, or a spike, in 2 steps in a row"):
        spiked(tmp_path, "skip", max_skipped=2)
    assert [row["step"] for row in rows(tmp_path)][-1] == 21


def test_a_run_goes_back_from_a_spike_and_on_behind_its_batch(wrong, tmp_path, capfd, monkeypatch):
    wrong(WRONG)
    assert spiked(tmp_path / "one", "rollback")
    said = capfd.readouterr().err
    assert "Going back to step 16." in said and "On with batch 21, behind that of a spike" in said
    found = rows(tmp_path / "one")
    assert [row["step"] for row in found] == list(range(1, 27))
    assert [row["train/spikes"] for row in found] == [0] * 16 + [1] * 10
    assert [row["train/skipped_steps"] for row in found] == [0] * 26
    assert [(e[0], e[1]) for e in shown(tmp_path / "one", "train/loss")] == [
        (row["step"], np.float32(row["train/loss"])) for row in found
    ]
    assert rollbacks.read(tmp_path / "one") == [rollbacks.Rollback(16, 21, 21)]
    parts = goodput.parts_of(goodput.read(tmp_path / "one" / goodput.FILE_NAME))
    assert parts[goodput.AGAIN] > 0
    page = (tmp_path / "one" / "report.html").read_text()
    assert goodput.AGAIN in page and "Goodput: " in page and "Goodput " in said
    assert saved(tmp_path / "one", 26, **RUN)[1]["batches"]["next_batch"] == 31

    # Killed right after going back, with nothing saved since, it does the same.
    wrong()
    assert not spiked(tmp_path / "two", "rollback", stop=16, monkeypatch=monkeypatch)
    rollbacks.write(tmp_path / "two", [rollbacks.Rollback(16, 21, 21)])
    assert spiked(tmp_path / "two", "rollback")
    assert rows(tmp_path / "two") == found
    assert_same_bits(saved(tmp_path / "two", 26, **RUN)[0], saved(tmp_path / "one", 26, **RUN)[0])
    # Going back further by hand, it meets all batches again.
    assert run.train(config(**RUN), tmp_path / "two", 8)
    assert rollbacks.read(tmp_path / "two") == []
    assert saved(tmp_path / "two", 26, **RUN)[1]["batches"]["next_batch"] == 26


def test_a_spike_that_comes_again_ends_the_run_and_is_not_saved(wrong, tmp_path):
    wrong(WRONG, WRONG + 2)
    with pytest.raises(FloatingPointError, match=r"step 18 is a spike: .* went back to step 16"):
        spiked(tmp_path, "rollback")
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 18))
    assert saved(tmp_path, 16, **RUN)[1]["batches"]["next_batch"] == 16
    with pytest.raises(FloatingPointError, match=r"went back to step 16"):
        spiked(tmp_path, "rollback")  # started again it knows


def test_without_a_checkpoint_a_run_goes_back_to_its_beginning(wrong, tmp_path):
    wrong(WRONG)
    assert spiked(tmp_path, "rollback", checkpoint_every=100)
    assert rollbacks.read(tmp_path) == [rollbacks.Rollback(0, 21, 21)]
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 27))


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"rollbacks": [{"to": 4}]}', '{"rollbacks": [{"to"', '{"rollbacks": 3}']
)
def test_a_file_of_rollbacks_that_was_changed_or_cut_is_named(text, tmp_path):
    (tmp_path / rollbacks.FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=r"rollbacks.json holds no rollbacks"):
        rollbacks.read(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cluster.watchdog_s": 0}, r"cluster.watchdog_s=0 must be at least 1 second"),
        ({"spikes.policy": "stop"}, r"spikes.policy='stop': .*known: off, rollback, skip, warn"),
        ({"spikes.threshold": 0.0}, r"spikes.threshold=0.0 must be above 0"),
        ({"spikes.window": 7}, r"spikes.window=7 must be at least 8"),
    ],
)
def test_wrong_values_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        check_keys(config(**changed))
