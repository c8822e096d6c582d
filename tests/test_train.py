"""The loop and the state: stopping anywhere and continuing changes not one bit of a run.

Runs go through `run.train` with dropout, augmentation and a moving average on. What a config
describes is built once for all tests that train it.
"""

import dataclasses
import functools
import itertools
import json
import math
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_recipe import Squares, config

from vlrep_jax import metrics, run, session
from vlrep_jax.build import plain
from vlrep_jax.checkpoint import Checkpoints
from vlrep_jax.data.pipeline import Batches
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.data.tokenizers import load_tokenizer
from vlrep_jax.experiment import make_experiment
from vlrep_jax.parallel import make_mesh, shardings
from vlrep_jax.train import TrainState, make_train_step

STEPS = 6
WIRINGS = {
    "jit": {},
    "fsdp": {"parallel.data": 4, "parallel.fsdp": 2},
    "pmap": {"parallel.wiring": "pmap"},
}


@functools.cache
def built(text):
    return make_experiment(config(**json.loads(text)))


@pytest.fixture(autouse=True)
def tiny_runs(monkeypatch):
    """`Squares` is a source, and equal configs share their compiled programs."""
    monkeypatch.setitem(SOURCES, "squares", Squares)
    for module in (run, session):
        monkeypatch.setattr(module, "make_experiment", shared)


def shared(wanted):
    """The experiment of a config, but for how often it logs, saves and evaluates."""
    default = _flat(plain(config()))
    changed = {k: v for k, v in _flat(plain(wanted)).items() if default.get(k, ...) != v}
    often = (
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_every",
        "max_skipped",
        "on_save_error",
    )
    made = built(json.dumps({k: v for k, v in changed.items() if k not in often}, sort_keys=True))
    return dataclasses.replace(made, config=wanted)


def _flat(section, prefix=""):
    flat = {}
    for key, value in section.items():
        deeper = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{key}.") if deeper else {f"{prefix}{key}": value}
    return flat


def train(workdir, *, stop=None, monkeypatch=None, **changed):
    """Trains the tiny recipe; SIGTERM comes during step `stop` of the session."""
    if stop is None:
        return run.train(config(**changed), workdir)
    with monkeypatch.context() as patched:

        def stopping(wanted):
            made, calls = shared(wanted), []

            def put(batch):
                calls.append(batch)
                if len(calls) == stop:
                    signal.raise_signal(signal.SIGTERM)
                return made.put(batch)

            return dataclasses.replace(made, put=put)

        patched.setattr(session, "make_experiment", stopping)
        return run.train(config(**changed), workdir)


def saved(workdir, step, **changed):
    """The state of a checkpoint, on the host, and its data position."""
    checkpoints = Checkpoints(workdir)
    state, data = checkpoints.restore(step, shared(config(**changed)).abstract_state)
    checkpoints.close()
    return jax.device_get(state), data


def rows(workdir):
    """What metrics.jsonl holds of training, the clock's readings left out."""
    timed = ("train/images_per_second", "train/data_wait_fraction", "time/")
    found = [row for row in metrics.read(workdir) if "train/loss" in row]
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in found]


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """wiring -> work directory of a whole run; under 'jit' it saved every step."""

    @functools.cache
    def of(wiring):
        workdir = tmp_path_factory.mktemp(wiring)
        often = {"checkpoint_every": 1} if wiring == "jit" else {}
        assert train(workdir, **often, **WIRINGS[wiring])
        return workdir

    return of


# Stop and continue.


@pytest.mark.parametrize(("wiring", "stops"), [("jit", (1, 2)), ("fsdp", (5,)), ("pmap", (2,))])
def test_stopping_and_continuing_changes_no_bit(
    wiring, stops, uninterrupted, tmp_path, monkeypatch
):
    changed = WIRINGS[wiring]
    done = 0
    for stop in stops:
        assert not train(tmp_path, stop=stop, monkeypatch=monkeypatch, **changed)
        done += stop
        assert len(rows(tmp_path)) == done
    assert train(tmp_path, **changed)
    assert rows(tmp_path) == rows(uninterrupted(wiring))
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, STEPS + 1))
    found, position = saved(tmp_path, STEPS, **changed)
    assert_same_bits(found, saved(uninterrupted(wiring), STEPS, **changed)[0])
    assert position["batches"]["next_batch"] == STEPS


def test_a_crash_between_checkpoints_repeats_its_steps_once(uninterrupted, tmp_path, monkeypatch):
    class PowerCut(Exception):
        pass

    def cut(*_):
        raise PowerCut

    with monkeypatch.context() as patched:
        patched.setattr(signal, "raise_signal", cut)
        with pytest.raises(PowerCut):  # in step 4; steps 1 to 3 are written, 2 is saved
            train(tmp_path, stop=4, monkeypatch=monkeypatch, checkpoint_every=2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert train(tmp_path)
    assert rows(tmp_path) == rows(uninterrupted("jit"))


def test_a_checkpoint_is_of_its_step_though_training_went_on(uninterrupted, tmp_path, monkeypatch):
    """The next step reuses the state's memory while it is being written."""
    assert not train(tmp_path, stop=3, monkeypatch=monkeypatch)
    for found, expected in zip(saved(tmp_path, 3), saved(uninterrupted("jit"), 3), strict=True):
        assert_same_bits(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, expected))


def test_steps_differ_so_that_equal_bits_mean_something(uninterrupted):
    assert len({row["train/loss"] for row in rows(uninterrupted("jit"))}) == STEPS


def test_a_run_continues_under_another_wiring(uninterrupted, tmp_path, monkeypatch):
    """Dropout's masks follow the shards under pmap only, so losses agree between the others."""
    assert not train(tmp_path, stop=2, monkeypatch=monkeypatch)
    assert not train(tmp_path, stop=2, monkeypatch=monkeypatch, **WIRINGS["fsdp"])
    assert_same_bits(saved(tmp_path, 2)[0], saved(tmp_path, 2, **WIRINGS["pmap"])[0])
    expected = rows(uninterrupted("jit"))[:4]
    for found, row in zip(rows(tmp_path), expected, strict=True):
        np.testing.assert_allclose(found["train/loss"], row["train/loss"], rtol=1e-5)
    assert train(tmp_path, **WIRINGS["pmap"])
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, STEPS + 1))


def test_a_state_moves_between_device_counts_without_a_changed_bit(uninterrupted, tmp_path):
    """Saved by 8 devices, then by 4, by 1 and by 8 again, every leaf laid out anew."""
    expected, _ = saved(uninterrupted("fsdp"), STEPS)
    directory = uninterrupted("fsdp")
    for devices, fsdp in ((4, 2), (1, 1), (8, 4)):
        mesh = make_mesh(-1, fsdp, devices=jax.devices()[:devices])
        shapes = shared(config()).abstract_state
        layout = shardings(shapes, mesh, [(".*", "fsdp")])
        like = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, layout
        )
        checkpoints = Checkpoints(directory)
        state, data = checkpoints.restore(STEPS, like)
        checkpoints.close()
        assert all(len(leaf.devices()) == devices for leaf in jax.tree.leaves(state))
        is_split = [not leaf.is_fully_replicated for leaf in jax.tree.leaves(state)]
        assert any(is_split) == (fsdp > 1)
        assert_same_bits(jax.device_get(state), expected)
        directory = tmp_path / str(devices)
        checkpoints = Checkpoints(directory)
        checkpoints.save(STEPS, state, data, {"devices": devices})
        checkpoints.close()
        checkpoints = Checkpoints(directory)
        assert checkpoints.meta(STEPS) == {"devices": devices}
        checkpoints.close()


def test_a_finished_run_runs_again_without_harm(uninterrupted, tmp_path, capfd):
    assert train(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes(), saved(tmp_path, STEPS)
    (tmp_path / "report.html").unlink()
    assert train(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before[0]
    assert_same_bits(saved(tmp_path, STEPS)[0], before[1][0])
    assert (tmp_path / "report.html").exists()
    assert "Continuing from step 6 of 6." in capfd.readouterr().err


# What an update does.


def test_randomness_is_of_seed_step_and_shard():
    def draws(seed, step):
        """What each of two shards draws."""
        seen = lambda params, batch, key: (params.sum(), {"drawn": jax.random.uniform(key)})  # noqa: E731
        train_step = make_train_step(seen, optax.identity(), seed=seed, axis_name="data")
        state = TrainState(jnp.int32(step), jnp.ones(1), optax.EmptyState(), None)
        run = jax.vmap(train_step, in_axes=(None, 0), axis_name="data")
        return run(state, jnp.zeros(2))[1]["drawn"].tolist()

    found = [draws(seed, step) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert len({value for pair in found for value in pair}) == 6
    assert draws(0, 1) == found[1]


def test_the_logit_scale_stays_at_100_or_less(tmp_path):
    changed = {"model.scale_init": 120.0, "max_logit_scale": 100.0}
    assert train(tmp_path, **changed)
    first, *others = (row["train/logit_scale"] for row in rows(tmp_path))  # before each update
    np.testing.assert_allclose(first, 120, rtol=1e-6)
    assert max(others) <= 100 * (1 + 1e-6)  # the rounding of exp
    assert saved(tmp_path, STEPS, **changed)[0].params["logit_scale"] <= np.float32(math.log(100))


def test_a_frozen_tower_keeps_its_bits_while_the_other_learns(uninterrupted, tmp_path):
    changed = {"freeze": ("image/.*",), "model.image.dropout": 0.0, "model.text.dropout": 0.0}
    assert train(tmp_path, **changed)
    # Freezing shows in no loss before the first update; that dropout was on elsewhere does.
    assert rows(tmp_path)[0]["train/loss"] != rows(uninterrupted("jit"))[0]["train/loss"]
    first = jax.device_get(shared(config(**changed)).init())
    last, _ = saved(tmp_path, STEPS, **changed)
    assert_same_bits(last.params["image"], first.params["image"])
    assert_same_bits(last.ema["image"], first.ema["image"])
    moved = jax.tree.map(lambda a, b: (a != b).any(), last.params["text"], first.params["text"])
    assert all(jax.tree.leaves(moved))
    # Nor are there moments of it.
    held = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(last.opt_state)}
    assert not any("['image']" in path for path in held)
    assert any("['text']" in path for path in held)


def test_the_moving_average_follows_and_is_what_is_evaluated(uninterrupted):
    workdir = uninterrupted("jit")
    begin = jax.device_get(shared(config()).init())
    states = [begin._replace(ema=begin.params), *(saved(workdir, n)[0] for n in (1, 2))]
    for before, state in itertools.pairwise(states):
        expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, before.ema, state.params)
        leaves = zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True)
        for found, wanted in leaves:
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-8)  # float32 rounding
    state, _ = saved(workdir, STEPS)
    _, encoder, step = run.load(workdir)
    assert step == STEPS
    assert_same_bits(jax.device_get(encoder.params), state.ema)
    assert not np.array_equal(state.ema["logit_scale"], state.params["logit_scale"])


def test_an_update_that_overflows_ends_the_run_and_is_not_saved(tmp_path):
    changed = {"schedule.peak": 1e38, "checkpoint_every": 1}
    with pytest.raises(FloatingPointError, match=r"parameter_norm is inf after step 2.*clip_norm"):
        train(tmp_path, **changed)
    # The first step of a warm-up has a rate of 0.
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [1]
    checkpoints.close()
    state, _ = saved(tmp_path, 1, **changed)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_batches_that_give_no_number_are_written_down_and_end_the_run(
    uninterrupted, tmp_path, monkeypatch
):
    """From step 3 on: the checkpoint is that of a run that ended there, and goes on as that."""
    plain_next, taken = Batches.__next__, []

    def poisoned(batches):
        batch = plain_next(batches)
        taken.append(batch)
        weights = np.full(len(batch["text"]), math.nan if len(taken) > 2 else 1, np.float32)
        return batch | {"weights": weights}

    often = {"checkpoint_every": 2, "max_skipped": 2, "log_every": 1}
    with monkeypatch.context() as patched:
        patched.setattr(Batches, "__next__", poisoned)
        with pytest.raises(FloatingPointError, match="2 steps in a row, the last of them step 4"):
            train(tmp_path, **often)
    held = [json.loads((tmp_path / "bad_batches" / f"{n}.json").read_text()) for n in (3, 4)]
    assert [each["step"] for each in held] == [3, 4]
    # Nobody was asked for the keys while training: they are those of the batch's place.
    batches = shared(config()).train_batches(load_tokenizer(tmp_path / "tokenizer.json"))
    assert [each["keys"] for each in held] == [batches.keys(2), batches.keys(3)]
    assert len(held[0]["keys"]) == len(taken[0]["text"]) and held[0]["keys"] != held[1]["keys"]
    batches.close()
    found = [row["train/skipped_steps"] for row in rows(tmp_path)]
    assert found == [0, 0, 1]
    assert saved(tmp_path, 2)[1]["skipped"] == {"total": 0, "in_a_row": 0, "spikes": 0}
