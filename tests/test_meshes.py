"""Meshes over several slices: 'data' crosses them, 'fsdp' stays inside one."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from two_processes import small_config

from vlrep_jax.experiment import make_experiment
from vlrep_jax.parallel import by_slice, make_mesh


@dataclass(frozen=True)
class Chip:
    """A device that is not here."""

    slice_index: int
    coords: tuple
    id: int
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


def chips(slices, sides=(4, 4)):
    """Slices of sides[0] x sides[1] chips, four to a host; the last slice first."""
    size = sides[0] * sides[1]
    return [
        Chip(s, (x, y, 0), s * size + x * sides[1] + y, (s * size + x * sides[1] + y) // 4)
        for s in reversed(range(slices))
        for x in range(sides[0])
        for y in range(sides[1])
    ]


@pytest.mark.parametrize(("data", "fsdp"), [(-1, 1), (-1, 16), (8, 4), (2, -1)])
@pytest.mark.parametrize("slices", [0, 2])
def test_fsdp_stays_inside_a_slice_and_data_crosses_them(data, fsdp, slices):
    found = make_mesh(data, fsdp, chips(2), slices=slices)
    assert found.axis_names == ("data", "fsdp") and found.size == 32
    of_row = [{chip.slice_index for chip in row} for row in found.devices]
    assert all(len(seen) == 1 for seen in of_row)  # every fsdp group
    order = [seen.pop() for seen in of_row]
    assert order == sorted(order) and set(order) == {0, 1}  # the slow axis outermost
    assert len({chip.id for chip in found.devices.flat}) == 32


def test_sizes_that_would_put_fsdp_across_slices_are_refused():
    message = r"parallel.data=1, parallel.fsdp=-1 do not fit 2 slices of 16 devices: 'data' must"
    with pytest.raises(ValueError, match=message):
        make_mesh(1, -1, chips(2))


def test_what_the_devices_say_is_not_overruled():
    with pytest.raises(ValueError, match=r"parallel.slices=4, but these devices are of 2; 0 takes"):
        make_mesh(-1, 1, chips(2), slices=4)
    with pytest.raises(ValueError, match=r"slices differ in size: \{0: 16, 1: 15\}"):
        by_slice(chips(2)[1:], 0)


def test_devices_that_say_nothing_are_grouped_by_process():
    of = lambda i: Chip(0, (), i, process_index=i % 4, platform="gpu")  # noqa: E731
    groups = by_slice([of(i) for i in range(8)], 2)
    assert [{device.process_index for device in group} for group in groups] == [{0, 1}, {2, 3}]
    assert len(by_slice([of(i) for i in range(8)], 0)) == 1
    with pytest.raises(ValueError, match=r"parallel.slices=3 must divide the 8 devices evenly"):
        by_slice([of(i) for i in range(8)], 3)


def test_slices_change_no_loss():
    """Where devices are changes the order of sums at most."""
    losses = []
    for slices in (1, 2):
        changed = {"parallel.data": 4, "parallel.fsdp": 2, "parallel.slices": slices}
        experiment = make_experiment(small_config(**changed))
        assert experiment.mesh.shape == {"data": 4, "fsdp": 2}
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
            "text": rng.integers(0, 300, (16, 8), dtype=np.int32),
            "pair_ids": np.arange(16, dtype=np.int32),
        }
        _, metrics = experiment.step(experiment.init(), experiment.put(batch))
        losses.append(float(metrics["loss"]))
    assert jax.device_count() == 8
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_a_step_compiles_for_two_slices_of_tpus():
    """libtpu's own devices and compiler: two slices of eight chips, FSDP inside each."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    from vlrep_jax.plan import topology

    topology.find("v5e:2x4")  # tells libtpu that it is not on a TPU's host
    devices = topologies.get_topology_desc("v5e:2x4", platform="tpu", num_slices=2).devices
    experiment = make_experiment(small_config(**{"parallel.fsdp": 4}), devices)
    assert experiment.mesh.shape == {"data": 4, "fsdp": 4}
    rows = [{chip.slice_index for chip in row} for row in experiment.mesh.devices]
    assert rows == [{0}, {0}, {1}, {1}]
    compiled = experiment.step.lower(experiment.abstract_state, experiment.abstract_batch).compile()
    assert compiled.memory_analysis().temp_size_in_bytes > 0
