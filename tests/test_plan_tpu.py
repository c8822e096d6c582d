"""Chips and slices: bandwidth by hand, and what libtpu says where it is installed."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from vlrep_jax import cli
from vlrep_jax.plan import estimate, hlo, topology
from vlrep_jax.plan.topology import CHIPS, Topology

ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests" / "tiny_recipe.py"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: '.[tpu]'"
)


class Place(NamedTuple):
    """A device as far as bandwidth is concerned."""

    coords: tuple[int, int, int]


def slice_of(generation, x, y, z=None):
    """A topology whose devices are only places."""
    places = [Place((i, j, k)) for k in range(z or 1) for j in range(y) for i in range(x)]
    shape = (x, y) if z is None else (x, y, z)
    name = f"{generation}:{'x'.join(map(str, shape))}"
    return Topology(name, places, CHIPS[generation], shape, CHIPS[generation].memory_bytes)


@pytest.mark.parametrize(
    ("generation", "shape", "group", "links"),
    [
        ("v5e", (16, 16), None, 4),  # a torus: two ways along either dimension
        ("v5e", (16, 16), range(16), 2),  # one ring
        ("v5e", (16, 16), range(8), 1),  # half of it, a line
        ("v5e", (16, 16), range(0, 256, 16), 2),  # a ring of the other dimension
        ("v5e", (8, 16), None, 3),  # only 16 close into a ring
        ("v5e", (2, 4), None, 2),
        ("v4", (4, 4, 4), None, 6),
        ("v4", (2, 2, 2), None, 3),
        ("v5p", (4, 4, 8), range(4), 2),
    ],
)
def test_links_of_a_group(generation, shape, group, links):
    place = slice_of(generation, *shape)
    group = range(len(place.devices)) if group is None else group
    assert place.bytes_per_second(group) == links * CHIPS[generation].link_bytes_per_second


@pytest.mark.parametrize(
    ("kind", "group", "gigabytes"),
    [  # of 1.6 GB over 16 x 16 chips, whose four links of 50 GB/s carry 200 GB/s
        ("all-gather", (), 1.6 * 255 / 256 / 200),
        ("reduce-scatter", (), 1.6 * 255 / 256 / 200),
        ("all-reduce", (), 2 * 1.6 * 255 / 256 / 200),
        ("all-reduce", tuple(range(16)), 2 * 1.6 * 15 / 16 / 100),
        ("collective-permute", (0, 1), 1.6 / 50),
        ("all-reduce", (3,), 0),
    ],
)
def test_time_of_a_collective(kind, group, gigabytes):
    collective = hlo.Collective(kind, 1, int(1.6e9), group, "")
    seconds = estimate.collective_seconds(collective, slice_of("v5e", 16, 16))
    assert seconds == pytest.approx(gigabytes)


# With libtpu. Programs for devices that are elsewhere can be written to the cache, but not read.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")


def product(place, size=8192):
    """The compiled bfloat16 product of two square matrices on one chip."""
    where = SingleDeviceSharding(place.devices[0])
    x = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=where)
    return hlo.parse(jax.jit(jnp.matmul).lower(x, x).compile().as_text())


@needs_libtpu
@pytest.mark.parametrize("generation", CHIPS)
def test_the_clock_gives_a_plausible_time_for_a_product(generation):
    shape = "2x2" if generation in ("v5e", "v6e") else "2x2x1"
    place = topology.find(f"{generation}:{shape}")
    assert len(place.devices) == 4  # one a chip
    seconds = hlo.total_cycles(product(place)) / place.chip.clock_hz
    share = 2 * 8192**3 / seconds / place.chip.peak_flops
    assert (0.85 < share < 1) == place.chip.is_calibrated


@needs_libtpu
@pytest.mark.parametrize("generation", CHIPS)
def test_memory_is_what_the_compiler_allows(generation):
    shape = "2x2" if generation in ("v5e", "v6e") else "2x2x1"
    place = topology.find(f"{generation}:{shape}")
    where = SingleDeviceSharding(place.devices[0])
    x = jax.ShapeDtypeStruct((256, 1024, 1024, 1024), jnp.bfloat16, sharding=where)
    with pytest.raises(jax.errors.JaxRuntimeError) as refusal:
        jax.jit(lambda x: x.sum(0)).lower(x).compile()
    needed, there = estimate.refused_bytes(str(refusal.value))
    assert there == place.memory_bytes
    assert 512 <= needed / 2**30 < 520  # the 512 GiB array, and what it is summed into


@needs_libtpu
def test_a_paper_s_recipe_without_remat_is_refused_with_its_size():
    words = ["--config.model.towers.remat=none"]
    config = cli.load_config(str(ROOT / "configs" / "clip_vit_b16.py"), words)
    made = estimate.plan(config, topology.find("v5e:16x16"))
    assert not made.fits and made.memory_bytes == int(15.75 * 2**30)
    assert made.excess_bytes == made.peak_bytes - made.memory_bytes > 2**30
    assert made.model_flops == pytest.approx(3 * 41.09e9 * 32_768, rel=1e-3)
    assert made.temp_bytes is made.estimated_step_seconds is made.collectives is None


def run(*argv):
    """A finished process of this Python, as a user's: nothing chosen by the tests' environment."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, *map(str, argv)]
    done = subprocess.run(words, env=kept, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@needs_libtpu
def test_a_tpu_plan_is_quiet_and_complete():
    words = ["plan", f"--config={TINY}", "--topology=v5e:2x4", "--json"]
    done = run("-c", "from vlrep_jax.cli import main; main()", *words)
    first, last = done.stderr.splitlines()  # nothing of libtpu's own
    assert "compiling for v5e:2x4" in first and "fits" in last
    found = json.loads(done.stdout)
    assert found["fits"] and found["chips"] == 8
    step = found["estimated_step_seconds"]
    assert 0 < step < 0.1
    assert found["samples_per_second"] == pytest.approx(16 / step)
    assert found["mfu"] == pytest.approx(found["model_flops"] / step / (8 * 197e12))
    assert found["chip_hours"] == pytest.approx(8 * 6 * step / 3600)
    assert found["collective_seconds"] == pytest.approx(
        sum(each["seconds"] for each in found["collectives"])
    )
    shares = [each["share"] for each in found["largest_operations"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 1.0001


@needs_libtpu
def test_weak_scaling_prints_a_table():
    script = ROOT / "benchmarks" / "weak_scaling.py"
    done = run(script, f"--config={TINY}", "--rows=2", "v5e:2x4")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    assert len({len(row) for row in rows}) == 1
    assert rows[2][:3] == ["v5e:2x4", "8", "16"] and rows[2][-2:] == ["100.0%"] * 2


def test_the_towers_rows_are_recipes():
    rows = runpy.run_path(str(ROOT / "benchmarks" / "plan_towers.py"))["ROWS"]
    for _, file, words in rows:
        cli.load_config(str(ROOT / "configs" / file), words)
    assert len({name for name, *_ in rows}) == len(rows)
