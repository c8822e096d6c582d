"""Checkpoints that are damaged, of another model, rolled back, or could not be saved."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vlrep_jax.checkpoint import Checkpoints, Damaged, SaveError, files, host, listing
from vlrep_jax.parallel import make_mesh
from vlrep_jax.retention import Keep

MESH = make_mesh(4, 2)
SPECS = {"kernel": P("fsdp"), "bias": P(), "moments": {"kernel": P(None, "fsdp")}, "step": P()}
SPECS = jax.tree.map(lambda spec: NamedSharding(MESH, spec), SPECS)


def state(step):
    rng = np.random.default_rng(step)
    made = {
        "kernel": rng.normal(size=(8, 6)).astype(np.float32),
        "bias": jnp.asarray(rng.normal(size=6), jnp.bfloat16),
        "moments": {"kernel": rng.normal(size=(8, 6)).astype(np.float32)},
        "step": np.int32(step),
    }
    return jax.device_put(made, SPECS)


LIKE = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state(0), SPECS
)


def with_steps(workdir, *steps, metrics=None, **options):
    checkpoints = Checkpoints(workdir, **options)
    for step in steps:
        values = None if metrics is None else {"m": metrics[step]} if step in metrics else {}
        checkpoints.save(step, state(step), {"at": step}, {"config": {}}, values)
    checkpoints.close()
    return workdir / "checkpoints"


def assert_is(found, step):
    """A restored state is that of a step, bit for bit and laid out as asked."""
    for one, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(state(step)), strict=True):
        assert one.dtype == wanted.dtype and one.sharding == wanted.sharding
        np.testing.assert_array_equal(np.asarray(one), np.asarray(wanted))


# Damage.


def half(directory, step):
    for path in (directory / str(step) / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_manifest(directory, step):
    (directory / str(step) / "state" / "manifest.ocdbt").unlink()


def no_record(directory, step):
    (directory / str(step) / files.RECORD).unlink()


def changed_record(directory, step):
    path = directory / str(step) / files.RECORD
    path.write_text(path.read_text().replace(f'"at": {step}', '"at": 99'))


def torn_record(directory, step):
    path = directory / str(step) / files.RECORD
    path.write_text(path.read_text()[:100])


def record_of_another_step(directory, step):
    (directory / str(step) / files.RECORD).write_bytes(
        (directory / "1" / files.RECORD).read_bytes()
    )


def arrays_of_another_step(directory, step):
    (directory / str(step) / "state").rename(directory / "own")
    (directory / "1" / "state").rename(directory / str(step) / "state")
    (directory / "own").rename(directory / "1" / "state")


def unfinished(directory, step):
    (directory / str(step) / files.FINISHED).unlink()


def empty(directory, step):
    files.remove(directory, step)
    (directory / str(step)).mkdir()


DAMAGES = {
    half: "state cannot be read",
    no_manifest: "state cannot be read",
    no_record: "there is no record/metadata",
    changed_record: "record/metadata is not what was saved",
    torn_record: "record/metadata cannot be read",
    record_of_another_step: "record/metadata is of step 1",
    arrays_of_another_step: "of 4 arrays changed since it was saved",
    unfinished: "it is not finished",
    empty: "it is not finished",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_set_aside_and_the_next_older_step_used(damage, tmp_path):
    directory = with_steps(tmp_path, 1, 2, 3)
    damage(directory, 3)
    (row,) = [row for row in listing.list_steps(directory) if row.step == 3]
    assert DAMAGES[damage] in row.problem
    reader = Checkpoints(tmp_path, read_only=True)  # says the same, and moves nothing
    assert reader.newest_good(LIKE).step == 2 and (directory / "3").exists()
    checkpoints = Checkpoints(tmp_path)
    found = checkpoints.newest_good(LIKE)
    assert found.step == 2 and found.data == {"at": 2}
    assert_is(found.state, 2)
    (note,) = found.notes
    assert note.startswith("Step 3 is damaged: ") and DAMAGES[damage] in note and "\n" not in note
    (aside,) = directory.glob("damaged-*/3")
    assert note.endswith(f"It was moved to {aside.parent.name}/3.")
    checkpoints.save(3, state(3), {}, {})  # the place is free again
    checkpoints.close()
    assert Checkpoints(tmp_path).newest_good(LIKE).step == 3
    assert aside.exists()


def test_messages_call_the_directory_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = with_steps(Path("run"), 1, 2, keep=9)
    half(directory, 2)
    (row,) = [row for row in listing.list_steps(directory) if row.step == 2]
    assert "run/checkpoints/2/state" in row.problem and str(tmp_path) not in row.problem
    checkpoints = Checkpoints("run")
    with pytest.raises(FileNotFoundError, match=r"No checkpoint of step 7 in run/checkpoints;"):
        checkpoints.restore(7, LIKE)
    with pytest.raises(ValueError, match=r"^run/checkpoints/2 is damaged: ") as caught:
        checkpoints.restore(2, LIKE)
    (note,) = checkpoints.newest_good(LIKE).notes
    half(directory, 1)
    with pytest.raises(ValueError, match=r"No checkpoint in run/checkpoints is whole") as none:
        checkpoints.newest_good(LIKE)
    assert not any(str(tmp_path) in str(words) for words in (caught.value, note, none.value))


def test_two_flipped_signs_are_found(tmp_path):
    """What TensorStore's own checksums cannot see: the arrays were wrong when they were written."""
    directory = with_steps(tmp_path, 1, 2)
    record = json.loads((directory / "2" / files.RECORD).read_text())
    changed = state(2)
    changed["kernel"] = changed["kernel"].at[jnp.array([0, 1]), 0].multiply(-1)
    checkpoints = Checkpoints(tmp_path / "changed")
    checkpoints.save(2, changed, {"at": 2}, {"config": {}})
    checkpoints.close()
    (tmp_path / "changed" / "checkpoints" / "2" / files.RECORD).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="damaged: kernel of 4 arrays changed since it was saved"):
        Checkpoints(tmp_path / "changed").restore(2, LIKE)
    with pytest.raises(Damaged, match="kernel of 4 arrays"):
        host.check(tmp_path / "changed" / "checkpoints", 2)


def test_where_no_step_is_whole_all_are_listed_and_none_is_moved(tmp_path):
    directory = with_steps(tmp_path, 1, 2)
    half(directory, 1)
    no_record(directory, 2)
    with pytest.raises(
        ValueError, match=r"No checkpoint in .* is whole \(2: .*; 1: .*\)"
    ) as caught:
        Checkpoints(tmp_path).newest_good(LIKE)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]
    assert Checkpoints(tmp_path / "new").newest_good(LIKE) is None


def test_what_a_killed_run_left_is_cleared_and_named(tmp_path):
    directory = with_steps(tmp_path, 1)
    for name in ("2.orbax-checkpoint-tmp", "0.removing"):
        (directory / name / "state").mkdir(parents=True)
    assert Checkpoints(tmp_path, read_only=True).cleared == []
    assert Checkpoints(tmp_path).cleared == ["0.removing", "2.orbax-checkpoint-tmp"]
    assert [path.name for path in directory.iterdir()] == ["1"]


# Another model.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x | {"bias": of(x["bias"], dtype=jnp.float32)}, r"bias is bfloat16\[6\] there, "
         r"float32\[6\] here"),
        (lambda x: x | {"bias": of(x["bias"], shape=(7,))}, r"bfloat16\[6\] there, bfloat16\[7\]"),
        (lambda x: {k: v for k, v in x.items() if k != "bias"}, r"bias is .* there, absent here"),
        (lambda x: x | {"scale": x["bias"]}, r"scale is absent there, bfloat16\[6\] here"),
    ],
)  # fmt: skip
def test_another_dtype_shape_or_tree_is_refused_by_name_and_nothing_is_moved(
    change, message, tmp_path
):
    directory = with_steps(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path)
    for call in (lambda like: checkpoints.restore(2, like), checkpoints.newest_good):
        with pytest.raises(ValueError, match=f"of another model or optimizer: .*{message}"):
            call(change(LIKE))
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]


def of(like, **changed):
    values = {"shape": like.shape, "dtype": like.dtype, "sharding": like.sharding} | changed
    return jax.ShapeDtypeStruct(**values)


# Rolling back, and what stays.


def test_rolling_back_sets_newer_steps_aside_once_the_older_is_known_to_be_whole(tmp_path):
    directory = with_steps(tmp_path, 1, 2, 3, keep=9)
    half(directory, 2)
    with pytest.raises(ValueError, match="/2 is damaged"):
        Checkpoints(tmp_path).roll_back(2, LIKE)
    with pytest.raises(FileNotFoundError, match=r"of step 7 .* there are: 1, 2, 3\."):
        Checkpoints(tmp_path).roll_back(7, LIKE)
    assert Checkpoints(tmp_path).steps() == [1, 2, 3]
    checkpoints = Checkpoints(tmp_path)
    found = checkpoints.roll_back(1, LIKE)
    assert_is(found.state, 1)
    assert found.notes[0].startswith("Rolled back to step 1: 2, 3 went to ")
    assert checkpoints.steps() == [1]
    assert sorted(p.name for p in next(directory.glob("rolled-back-*")).iterdir()) == ["2", "3"]
    checkpoints.save(2, state(7), {"at": 7}, {})  # Orbax's manager would not save an older step
    checkpoints.close()
    assert_is(Checkpoints(tmp_path).newest_good(LIKE).state, 7)


def test_the_newest_every_kth_and_the_best_stay(tmp_path):
    scores = {1: 0.1, 2: 0.9, 4: 0.3, 5: float("nan"), 7: 0.2}
    steps = range(1, 9)
    keep = Keep(2, every=3, metric="m")
    directory = with_steps(tmp_path, *steps, metrics=scores, keep=keep)
    assert sorted(int(path.name) for path in directory.iterdir()) == [2, 3, 6, 7, 8]
    rows = {row.step: row.metrics for row in listing.list_steps(directory, verify=False)}
    assert rows == {2: {"m": 0.9}, 3: {}, 6: {}, 7: {"m": 0.2}, 8: {}}
    # Metrics are read back, so another session goes on choosing by them.
    with_steps(tmp_path, 10, metrics={10: 0.5}, keep=Keep(1, metric="m"))
    assert Checkpoints(tmp_path).steps() == [2, 10]


def test_a_listing_shows_size_age_metric_and_state(tmp_path, capsys):
    directory = with_steps(tmp_path, 1, 2, metrics={1: 0.25})
    half(directory, 2)
    assert not listing.show(tmp_path, "m")
    one, two = capsys.readouterr().out.splitlines()
    assert one.split()[:2] == ["step", "1"] and "MiB" in one and " s old  m 0.2500  whole" in one
    assert "no metric  DAMAGED: its state cannot be read" in two
    assert listing.show(tmp_path, "m", verify=False)
    assert "not verified" in capsys.readouterr().out
    assert not listing.show(tmp_path, "", as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert [row["problem"] == "" for row in rows] == [True, False]
    assert rows[0]["size"] == sum(p.stat().st_size for p in directory.glob("1/**/*") if p.is_file())


def test_arrays_are_verified_some_at_a_time(tmp_path, monkeypatch):
    directory = with_steps(tmp_path, 1)
    read, largest = host._read, []

    def counted(*args, **options):
        found = read(*args, **options)
        largest.append(sum(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found)))
        return found

    monkeypatch.setattr(host, "_read", counted)
    monkeypatch.setattr(host, "PART_BYTES", 1)
    host.check(directory, 1)
    assert largest == [1, 1, 1, 1]


def test_a_save_that_fails_in_the_background_is_told_at_the_next_and_leaves_nothing(
    tmp_path, monkeypatch
):
    directory = with_steps(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)

    def full(self, path):
        raise OSError(28, "No space left on device")

    import orbax.checkpoint as ocp

    with monkeypatch.context() as patched:
        patched.setattr(ocp.CompositeCheckpointHandler, "finalize", full)
        checkpoints.save(2, state(2), {}, {})
        with pytest.raises(SaveError, match=r"Step 2 could not be saved \(OSError: .*No space left "
                           r"on device\). Saved before: 1\."):  # fmt: skip
            checkpoints.finish()
    assert [path.name for path in directory.iterdir()] == ["1"]
    checkpoints.finish()  # told once
    checkpoints.save(3, state(3), {}, {})
    checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [1, 3]
