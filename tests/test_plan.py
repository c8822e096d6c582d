"""`vlrep plan`: on CPU devices end to end, its errors, what it says where a step does not fit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny_recipe import Squares, config

from vlrep_jax import cli
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.experiment import make_experiment, make_tokenizer
from vlrep_jax.losses import LOSSES
from vlrep_jax.models.transformer import REMAT_POLICIES
from vlrep_jax.plan import estimate, flops, text, topology, variants

HERE = Path(__file__).parent
ROOT = HERE.parent
TINY = str(HERE / "tiny_recipe.py")
PLAN = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def squares(monkeypatch):
    monkeypatch.setitem(SOURCES, "squares", Squares)
    jax.devices()  # from here on their number stays eight, whatever a test asks for


@pytest.fixture(scope="module")
def tiny():
    """The plan of the tiny recipe on eight CPU devices."""
    return estimate.plan(config(), topology.find("cpu:8"))


def called(*argv):
    with pytest.raises(SystemExit) as exit:
        cli.main([str(word) for word in argv])
    return exit.value.code or 0


# The step.


def test_the_planned_batch_is_the_one_that_trains():
    experiment = make_experiment(config())
    batches = experiment.train_batches(make_tokenizer(config()))
    host = next(batches)
    batches.close()
    for name in ("bad", "truncated"):  # counted on the host
        host.pop(name)

    def described(batch):
        return {k: (v.shape, v.dtype, v.sharding) for k, v in batch.items()}

    assert described(experiment.put(host)) == described(experiment.abstract_batch)


def test_the_program_is_the_one_that_trains(tiny):
    """Its arguments are the state and the batch of this very experiment, on one device of eight."""
    experiment = make_experiment(config())
    state, batch = bytes_of(experiment.abstract_state), bytes_of(experiment.abstract_batch)
    assert tiny.argument_bytes == state + batch // 8
    assert tiny.output_bytes < 4096  # metrics; the state's memory is used again


def bytes_of(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_flops_and_collectives_of_the_tiny_recipe(tiny):
    # Two layers of each tower: 2 * depth * (12 w^2 n + 2 n^2 w), patches or none, and a projection.
    image = 2 * (2 * (12 * 16**2 * 5 + 2 * 5**2 * 16) + 4 * 3 * 8**2 * 16 + 16 * 16)
    words = 2 * (2 * (12 * 16**2 * 8 + 2 * 8**2 * 16) + 16 * 16)
    assert tiny.model_flops == 3 * 16 * (image + words)
    # Of the second layer, MLP, queries and outputs are computed where they are read alone: what is
    # left of it are keys and values, a sixth.
    assert 0.55 < tiny.executed_flops / tiny.model_flops < 0.85
    kinds = {each["kind"]: each for each in tiny.collectives}
    gradients = tiny.parameters * 4
    assert 0.99 < kinds["all-reduce"]["bytes"] / gradients < 1.1  # and sums of the loss
    assert all(each["seconds"] is None for each in tiny.collectives)


def test_frozen_towers_count_forward_only():
    frozen = make_experiment(config(freeze=("image/.*",)))
    whole, part = (
        estimate.training_flops(make_experiment(config())),
        estimate.training_flops(frozen),
    )
    image = flops.forward(frozen.model, (16, 16, 3), 8)["image"]
    assert whole - part == 2 * image


def test_the_model_s_flops_do_not_depend_on_how_it_is_computed():
    plain = estimate.training_flops(make_experiment(config()))
    flash = config()
    with flash.unlocked():
        flash.model.image.attention, flash.model.image.remat = "flash", "full"
    assert estimate.training_flops(make_experiment(flash)) == plain


def test_pmap_recipes_are_planned_as_jit(tiny):
    made = estimate.plan(config(**{"parallel.wiring": "pmap"}), topology.find("cpu:8"))
    assert made.peak_bytes == tiny.peak_bytes
    assert any("pmap" in note for note in made.notes)


# The command.


def test_json_has_the_documented_keys(capsys):
    assert called("plan", f"--config={TINY}", "--topology=cpu:8", "--json") == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    rows = PLAN.split("## JSON")[1].split("\n## ")[0].splitlines()
    first_cells = [row.split("|")[1] for row in rows if row.startswith("| `")]
    documented = re.findall(r"`(\w+)`", " ".join(first_cells))
    assert set(found) == set(documented) - {"advice", "sweep", "best"}
    for key in ("estimated_step_seconds", "mfu", "samples_per_second"):
        assert found[key] is None
    assert found["fits"] is True and found["temp_bytes"] > 0
    assert found["peak_bytes"] == (
        found["argument_bytes"] + found["temp_bytes"] + found["output_bytes"]
    )
    assert {each["kind"] for each in found["collectives"]} >= {"all-reduce", "all-gather"}
    assert "fits" in out.err  # progress


def test_help_and_flags_that_are_missing(capsys):
    assert called("plan", "--help") == 0
    words = capsys.readouterr().out
    assert words.startswith("usage: vlrep plan --config") and "--config.KEY=VALUE" in words
    assert len(max(words.splitlines(), key=len)) <= 100
    assert called("plan", "--config=c") == 2
    assert "--topology is required" in capsys.readouterr().err


def test_text_says_what_matters(capsys):
    assert called("plan", f"--config={TINY}", "--topology=cpu:8", "--config.batch_size=32") == 0
    out = capsys.readouterr().out
    for words in ("FITS: peak", "to spare", "arguments", "temporaries", "all-reduce", "batch 32"):
        assert words in out
    assert len(max(out.split("Note:")[0].splitlines(), key=len)) <= 110


def test_a_fresh_process_gets_the_devices_it_asks_for():
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    done = command("--topology=cpu:3", "--config.batch_size=9", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chips"] == 3
    assert all("cpu:3" in line or "fits" in line for line in done.stderr.splitlines())


def test_without_libtpu_the_command_says_how_to_get_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['libtpu'] = None\n")
    environment = {k: v for k, v in os.environ.items() if k != "TPU_LIBRARY_PATH"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
    done = command("--topology=v5e:2x2", env=environment)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and not done.stdout
    assert line.startswith("vlrep: error: --topology=v5e:2x2 needs libtpu")
    assert "pip install -e '.[tpu]'" in line and "--topology=cpu:8" in line


def command(*words, env):
    main = [sys.executable, "-c", "from vlrep_jax.cli import main; main()"]
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    argv = [*main, "plan", f"--config={TINY}", *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology=v9:2x2"], "unknown chip 'v9'; known: v4, v5e, v5p, v6e, cpu"),
        (["--topology=v5e"], "there is no TPU v5e slice of shape ''; valid are v5e:1x1, v5e:2x2"),
        (["--topology=v5e:32x32"], "no TPU v5e slice of shape '32x32'; valid are v5e:1x1"),
        (["--topology=v5e:3x5"], "no TPU v5e slice of shape '3x5'"),
        (["--topology=v4:2x2"], "no TPU v4 slice of shape '2x2'; valid are v4:2x2x1"),
        (["--topology=v5p:4x4x6"], "multiples of 4 up to 6144 chips"),
        (["--topology=v4:16x16x24"], "multiples of 4 up to 4096 chips"),
        (["--topology=v4:0x4x4"], "no TPU v4 slice of shape '0x4x4'"),
        (["--topology=cpu"], "give the number of CPU devices, as in cpu:8"),
        (["--topology=cpu:none"], "give the number of CPU devices, as in cpu:8"),
        (["--topology=cpu:99"], "already started with 8 CPU devices"),
        (["--topology=cpu:8", "--config.batch_size=12"], "must be a multiple of 8 devices"),
        (["--topology=cpu:8", "--config.loss.name=x"], "Unknown loss 'x'"),
        (["--topology=cpu:8", "--config.parallel.fsdp=3"], "do not fit 8 devices"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(words, message, capsys):
    assert called("plan", f"--config={TINY}", *words) == 2
    out = capsys.readouterr()
    (line,) = out.err.splitlines()
    assert not out.out and line.startswith("vlrep: error: ") and message in line, line


# What does not fit.


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (27.19G) exceeds available HBM (15.75G).",
            (27.19, 15.75),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 16.90G of 15.75G hbm. Exceeded hbm capacity by 1.15G.",
            (16.90, 15.75),
        ),
        ("INTERNAL: something else (3)", None),
    ],
)
def test_a_refusal_is_read_to_the_byte_it_names(message, expected):
    found = estimate.refused_bytes(message)
    assert found == (expected and tuple(int(n * 2**30) for n in expected))


def small(tiny, share):
    """Eight CPU devices with so much less memory than the tiny recipe needs."""
    place = topology.find("cpu:8")
    return place._replace(memory_bytes=int(tiny.peak_bytes * share))


def test_the_excess_is_what_is_missing(tiny):
    place = small(tiny, 0.5)
    made = estimate.plan(config(), place)
    assert not made.fits
    assert made.excess_bytes == tiny.peak_bytes - place.memory_bytes > 0
    assert tiny.excess_bytes == 0
    assert "DOES NOT FIT" in text.verdict(made) and "too much" in text.verdict(made)


def test_advice_finds_what_makes_it_fit(tiny):
    """Most of what the tiny recipe holds is its state, which only FSDP makes smaller."""
    lines = []
    tried = variants.advise(config(), small(tiny, 0.8), lines.append)
    assert {lever for change, _ in tried for lever in change} <= set(variants.LEVERS)
    fitting = [change for change, made in tried if made.fits]
    assert fitting and all(change["fsdp"] in (4, 8) for change in fitting)
    assert sum("compiling" in line for line in lines) == len(tried)


def test_advice_says_when_nothing_helps(tiny, capsys, monkeypatch):
    place = small(tiny, 0.01)
    monkeypatch.setattr(topology, "find", lambda name: place)
    assert called("plan", f"--config={TINY}", "--topology=cpu:8", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"] and not any(each["fits"] for each in found["advice"])
    assert len(found["advice"][-1]["change"]) > 1  # all together were tried last


def test_levers_are_those_of_this_version():
    place = topology.find("cpu:8")
    savers = variants.savers(config(), place)
    assert set(savers["remat"]) == set(REMAT_POLICIES) - {"none"} and savers["remat"][-1] == "full"
    assert savers["fsdp"] == [4]
    assert savers.get("loss", []) == [name for name in ("softmax_ring",) if name in LOSSES]
    full = variants.changed(config(), {"remat": "full", "fsdp": 4})
    assert variants.current(full) | {"remat": "full", "fsdp": 4} == variants.current(full)
    assert "remat" not in variants.savers(full, place)
    with pytest.raises(ValueError, match="Unknown lever 'size'"):
        variants.changed(config(), {"size": 1})


def test_a_sweep_compares_all_and_names_the_best(capsys, monkeypatch):
    changes = [{"remat": "none", "fsdp": 1}, {"remat": "none", "fsdp": 8}, {"fsdp": 3}]
    monkeypatch.setattr(variants, "combinations", lambda *_: changes)
    assert called("plan", f"--config={TINY}", "--topology=cpu:8", "--sweep", "--json") == 0
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert [each["change"] for each in found["sweep"]] == changes[:2]
    assert found["best"] == changes[1]  # on CPUs the least memory
    assert "fsdp=3: left out: " in out.err


def test_combinations_hold_every_lever_once():
    made = variants.combinations(config(), topology.find("cpu:8"))
    assert len({tuple(change.items()) for change in made}) == len(made)
    assert {change["remat"] for change in made} == set(REMAT_POLICIES)
    assert {change["fsdp"] for change in made} == {1, 8}


@pytest.mark.parametrize(
    ("op_name", "short"),
    [
        (
            "jit(train_step)/transpose(jvp(DualEncoder))/DualEncoder.encode_image/image/transformer/"
            "while/body/closed_call/checkpoint/layers/attn/vmap(BNTS,BSNH->BTNH)/dot_general",
            "image/attn/dot_general, backward",
        ),
        (
            "jit(train_step)/transpose(jvp(DualEncoder))/DualEncoder.encode_text/text/transformer/"
            "while/body/closed_call/checkpoint/rematted_computation/layers/mlp/fc1/dot_general",
            "text/mlp/fc1/dot_general, recomputed",
        ),
        ("jit(train_step)/jvp()/shard_map/all_gather", "all_gather, forward"),
        ("jit(train_step)/reduce_sum", "reduce_sum"),
        ("reshape.966", "reshape"),
    ],
)
def test_operations_are_named_by_their_place_in_the_model(op_name, short):
    assert estimate.short_name(op_name) == short


def test_sizes_have_units_that_suit():
    assert [text.size(n) for n in (0, 2048, 3 << 20, 5 << 30)] == [
        "0 B",
        "2.00 KiB",
        "3.00 MiB",
        "5.00 GiB",
    ]
