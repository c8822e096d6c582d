"""Runs that continue after damage, from an earlier step, or with a changed config."""

import dataclasses

import jax
import pytest
from safetensors import safe_open
from test_train import (
    STEPS,
    assert_same_bits,
    rows,
    saved,
    shared,
    tiny_runs,  # noqa: F401 (a fixture for all tests here)
    train,
    uninterrupted,  # noqa: F401 (a fixture)
)
from tiny_recipe import config

from vlrep_jax import cli, metrics, run, session, weights, workdirs
from vlrep_jax.checkpoint import Checkpoints, SaveError, listing
from vlrep_jax.config_keys import check_keys
from vlrep_jax.metrics import MetricsWriter

EVALS = {"own": {"name": "retrieval", "source": {"name": "squares", "count": 16}}}


def ended_the_same(workdir, other):
    assert rows(workdir) == rows(other)
    assert [row["step"] for row in rows(workdir)] == list(range(1, STEPS + 1))
    one, two = saved(workdir, STEPS), saved(other, STEPS)
    assert_same_bits(one[0], two[0])
    assert one[1] == two[1]
    return True


def steps(workdir):
    return [row.step for row in listing.list_steps(workdir / "checkpoints", verify=False)]


def damage(workdir, step):
    for path in (workdir / "checkpoints" / str(step) / "state").rglob("d/*"):
        path.write_bytes(bytes(path.stat().st_size))


def test_a_run_whose_newest_checkpoints_rotted_repeats_their_steps(
    uninterrupted,  # noqa: F811
    tmp_path,
    capfd,
):
    assert train(tmp_path, checkpoint_every=1)
    damage(tmp_path, 6)
    damage(tmp_path, 5)
    (tmp_path / "checkpoints" / "9").mkdir()
    *_, step = run.load(tmp_path)  # a reader says so, and moves nothing
    assert step == 4 and steps(tmp_path) == [1, 2, 3, 4, 5, 6, 9]
    assert "Step 6 is damaged" in capfd.readouterr().err
    assert train(tmp_path, checkpoint_every=2)
    said = capfd.readouterr().err
    for line in (
        "Step 9 is damaged: it is not finished",
        "Step 6 is damaged: its state cannot be read",
        "Step 5 is damaged",
        "Continuing from step 4 of 6.",
        "Changed since that step: checkpoint_every was 1, now 2.",
    ):
        assert sum(text.startswith(line) for text in said.splitlines()) == 1, said
    assert ended_the_same(tmp_path, uninterrupted("jit"))
    assert steps(tmp_path) == [1, 2, 3, 4, 6]
    (aside,) = (tmp_path / "checkpoints").glob("damaged-*")
    assert sorted(path.name for path in aside.iterdir()) == ["5", "6", "9"]


def test_a_run_goes_back_to_a_step_and_repeats_what_came_after(
    uninterrupted,  # noqa: F811
    tmp_path,
):
    assert train(tmp_path, checkpoint_every=1)
    with pytest.raises(FileNotFoundError, match=r"No checkpoint of step 7 .* 1, 2, 3, 4, 5, 6"):
        run.train(config(), tmp_path, 7)
    assert len(rows(tmp_path)) == 6
    assert run.train(config(checkpoint_every=4), tmp_path, 3)
    assert ended_the_same(tmp_path, uninterrupted("jit"))
    assert steps(tmp_path) == [1, 2, 3, 4, 6]
    (aside,) = (tmp_path / "checkpoints").glob("rolled-back-*")
    assert sorted(path.name for path in aside.iterdir()) == ["4", "5", "6"]


def test_no_step_is_saved_before_its_rows_are_on_disk(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsWriter, "sync", full)
    with pytest.raises(SaveError, match=r"^Step 2 could not be saved: its metrics cannot be writ"):
        train(tmp_path, checkpoint_every=2, on_save_error="stop")
    assert steps(tmp_path) == []


def test_the_command_to_continue_does_not_go_back_again(tmp_path, monkeypatch, capsys):
    words = ["train", "--config=tests/tiny_recipe.py", f"--workdir={tmp_path}", "--restore_step=3"]
    monkeypatch.setattr("sys.argv", ["vlrep", *words])
    monkeypatch.setattr(cli, "load_config", lambda *_: config())
    monkeypatch.setattr(run, "train", lambda config, workdir, step, **_: step != 3)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == cli.STOPPED_CODE
    assert "restore_step" not in capsys.readouterr().err


def test_the_best_of_a_metric_stays_and_its_value_is_kept(tmp_path, monkeypatch):
    def evaluated(wanted):  # neither evaluations nor what is kept changes what is compiled
        check_keys(wanted)
        return dataclasses.replace(shared(config()), config=wanted)

    monkeypatch.setattr(session, "make_experiment", evaluated)
    metric = "own/image_to_text_recall@1"
    changed = {"evals": EVALS, "checkpoint_every": 1, "eval_every": 2, "keep_checkpoints": 1}
    with pytest.raises(ValueError, match=r"keep_best.metric='own/recall': .*image_to_text_recall"):
        train(tmp_path / "w", **changed, **{"keep_best.metric": "own/recall"})
    with pytest.raises(ValueError, match=r"must be NAME/METRIC with NAME among config\.evals: own"):
        train(tmp_path / "w", **changed, **{"keep_best.metric": "other/recall"})
    assert train(tmp_path, **changed, **{"keep_best.metric": metric}, keep_every=5)
    values = {
        row["step"]: row[metric]
        for row in metrics.read(tmp_path)
        if metric in row and row["step"] in (2, 4, 6)
    }
    best = max(values, key=lambda step: (values[step], step))
    assert steps(tmp_path) == sorted({best, 5, 6})
    found = listing.list_steps(tmp_path / "checkpoints", verify=False)
    assert {row.step: row.metrics.get(metric) for row in found} == {
        step: values.get(step) for step in steps(tmp_path)  # 5 was not evaluated
    }  # fmt: skip


def test_a_checkpoint_says_what_made_it(uninterrupted):  # noqa: F811
    checkpoints = Checkpoints(uninterrupted("jit"), read_only=True)
    meta = checkpoints.meta(STEPS)
    assert meta["versions"] == workdirs.versions()
    assert meta["versions"]["vlrep_jax"].startswith("0.1.0+")
    assert workdirs.changes(meta["config"], config(checkpoint_every=1)) == []


def test_vlrep_checkpoints_ends_with_1_where_one_is_damaged(tmp_path, capsys):
    def ends(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main(["checkpoints", str(tmp_path), *words])
        return ended.value.code or 0

    assert ends() == 2  # no run
    assert train(tmp_path, checkpoint_every=3)
    assert ends() == 0
    damage(tmp_path, 6)
    assert ends() == 1 and ends("--json") == 1 and ends("--no-verify") == 0
    assert "DAMAGED" in capsys.readouterr().out
    assert steps(tmp_path) == [3, 6]  # nothing is moved


def test_a_finished_run_leaves_its_model_in_plain_files(uninterrupted, tmp_path):  # noqa: F811
    workdir = uninterrupted("jit")
    assert sorted(path.name for path in (workdir / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    with safe_open(workdir / "model" / "model.safetensors", "numpy") as file:
        names = set(file.keys())
    assert "image/positional_embedding" in names and "logit_scale" in names
    plainly, state = weights.load(workdir / "model"), saved(workdir, STEPS)[0]
    assert_same_bits(jax.device_get(plainly.params), state.ema)
    restored = weights.load(f"{workdir}@{STEPS}")
    assert plainly.preprocess == restored.preprocess and plainly.model == restored.model
    assert plainly.tokenizer.fingerprint() == restored.tokenizer.fingerprint()
    with pytest.raises(FileExistsError):
        weights.save(workdir / "model", plainly, "vlrep")
    weights.save(tmp_path / "again", plainly, "vlrep")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        written = (tmp_path / "again" / name).read_bytes()
        assert written == (workdir / "model" / name).read_bytes()
    (tmp_path / "again" / "config.json").write_text('{"format": "vlrep_jax 1"}')
    with pytest.raises(ValueError, match="lacks the sections model and image"):
        weights.load(tmp_path / "again")
