"""Checkpoints of several processes: restored by fewer, and a problem of one is a problem of all."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from several_processes import STEPS, holds, layout, values  # noqa: E402

from vlrep_jax.checkpoint import Checkpoints, listing  # noqa: E402
from vlrep_jax.fingerprint import on_host  # noqa: E402


def together(count, folder, act):
    """What each of `count` processes saw, over 8 devices in all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={8 // count}")
    paths = [str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(paths)}
    script = str(HERE / "several_processes.py")
    running = [
        subprocess.Popen(
            [sys.executable, script, str(process), str(count), str(port), str(folder), act],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(count)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in running:
            process.kill()
    return [json.loads((folder / f"{act}-{process}.json").read_text()) for process in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def saved(folder):
    return together(4, folder, "save")


@pytest.fixture(scope="module")
def restored(saved, folder):
    return together(2, folder, "restore")


def test_every_process_names_the_hosts_fingerprints(saved):
    for step in STEPS:
        expected = {path: on_host(np.asarray(x)) for path, x in values(step).items()}
        assert all(seen[str(step)] == expected for seen in saved)


def test_two_processes_restore_what_four_saved_and_agree_on_what_one_cannot_read(restored):
    one, other = restored
    assert (one["step"], other["step"]) == (2, 2) and one["same"] and other["same"]
    assert one["notes"] == other["notes"]
    assert "Step 3 is damaged: process 1: its state cannot be read (OSError" in one["notes"][0]


def test_a_save_that_one_process_refuses_fails_for_both(restored):
    for seen in restored:
        assert "Step 5 could not be saved (process 1: OSError: no space on this" in seen["error"]


@pytest.mark.parametrize(("devices", "mesh"), [(8, (-1, 8)), (4, (2, 2)), (1, (1, 1))])
def test_one_process_restores_what_two_saved_on_any_number_of_devices(
    devices, mesh, restored, folder
):
    like = layout(mesh, jax.devices()[:devices])
    found = Checkpoints(folder, read_only=True).newest_good(like)
    assert found.step == 6 and found.data == {"at": 6} and holds(found.state, 6)
    rows = {row.step: row.problem for row in listing.list_steps(folder / "checkpoints")}
    assert rows == {1: "", 2: "", 6: ""}  # 3 newest stay, 3 is set aside, 5 was cleared
