"""Hosts that are told to stop, die, freeze, fail or hang: real processes, real signals.

The short form is part of the suite; VLREP_FAULTS=full adds the other phases and roles.
"""

import json
import os
import re
import signal
import time

import pytest
from hosts import Run, local
from outcome import assert_same, result

from vlrep_jax import metrics, rollbacks

STEPS = 12
HEARTBEAT_S, WATCHDOG_S = 10, 8
TRAINED = (f"--config.steps={STEPS}", "--config.checkpoint_every=4", "--config.eval_every=4")
FULL = os.environ.get("VLREP_FAULTS") == "full"
LIMITS = (
    f"--config.cluster.heartbeat_s={HEARTBEAT_S}",
    f"--config.cluster.watchdog_s={WATCHDOG_S}",
)
full = pytest.mark.skipif(not FULL, reason="VLREP_FAULTS=full runs it")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, programs):
    """What the run is that nobody disturbs: (step, parameters, losses by step).

    Process 0 writes its report for longer than jax's last barrier would wait for it.
    """
    workdir = tmp_path_factory.mktemp("undisturbed")
    faults = {0: f"report@{STEPS} barrier@1", 1: "barrier@1"}
    with Run(workdir, *TRAINED, cache=programs, faults=faults) as run:
        assert run.codes()[0] == [0, 0], run.text()[-4000:]
    assert "now: report" in run.text(0)
    return result(workdir)


def stop_in(workdir, phase, programs, *, process=1, number=signal.SIGTERM):
    """Stops one process in a phase of a run; returns what all said, and how long it took."""
    with Run(workdir, *TRAINED, cache=programs, faults={process: phase}, delay_s=0.05) as run:
        run.wait_for("now: ", process)
        time.sleep(0.3)  # into it
        sent = run.send(process, number)
        codes, ended = run.codes()
        assert codes == [42, 42], run.text()[-4000:]
    print(f"{phase} in process {process}: all ended with 42 after {ended - sent:.2f} s")
    return run.text()


PHASES = [
    pytest.param("compile@1", 1, 0, id="compile", marks=full),
    pytest.param("step@3", 0, 3, id="step"),
    pytest.param("restore@0", 1, 0, id="restore", marks=full),
    pytest.param("evaluate@0", 0, 0, id="first evaluation", marks=full),
    pytest.param("evaluate@4", 1, 4, id="evaluation", marks=full),
    pytest.param("save@4", 0, 4, id="save", marks=full),
]


@pytest.mark.parametrize(("phase", "process", "least"), PHASES)
def test_a_signal_to_one_process_stops_all_at_one_step(
    phase, process, least, tmp_path, programs, undisturbed
):
    """And no step is lost or repeated, nor a bit changed, by the time the run has ended."""
    number = signal.SIGINT if process else signal.SIGTERM
    # The first has its programs still to compile.
    said = stop_in(
        tmp_path,
        phase,
        tmp_path / "none" if "compile" in phase else programs,
        process=process,
        number=number,
    )
    name = signal.Signals(number).name
    if least:
        assert f"{name} to process {process}" in said
        at = int(said.split("all processes stop at step ")[1].split(".")[0])
        assert least <= at <= least + 3
        assert result(tmp_path)[0] == at
    else:
        assert "stopped before a step was done; nothing is to be saved" in said
    with Run(tmp_path, *TRAINED, cache=programs) as run:
        assert run.codes()[0] == [0, 0], run.text()[-4000:]
    if least:
        assert f"Continuing from step {at} of {STEPS}." in run.text(0)
    assert_same(result(tmp_path), undisturbed)


@full
def test_a_second_signal_ends_at_once(tmp_path, programs):
    with Run(tmp_path, *TRAINED, cache=programs, faults={1: "step@3"}) as run:
        run.wait_for("now: step", 1)
        run.send(1, signal.SIGTERM)
        time.sleep(0.2)
        sent = run.send(1, signal.SIGTERM)
        codes, ended = run.codes()
    assert codes == [143, 143], run.text()[-4000:]
    assert ended - sent < 5, run.text()[-4000:]
    assert "SIGTERM to process 1" in run.text(0) and "twice" in run.text(0)


def disturbed(tmp_path, programs, kind, process):
    """(run, process that is left, seconds until the last of them ended)."""
    faults = {process: f"{kind}@3"} if kind in ("raise", "hang") else None
    with Run(
        tmp_path,
        *LIMITS,
        "--config.steps=10000",
        cache=programs,
        faults=faults,
        delay_s=0.05,
    ) as run:
        if faults:
            run.wait_for(f"now: {kind}", process)
            began = next(at for at, _, line in run.lines if line == f"now: {kind}")
        else:
            run.wait_for("step ", 0)
            began = run.send(process, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        # A frozen process cannot end by itself: what started it kills it.
        left = [1 - process] if kind in ("kill", "freeze") else [0, 1]
        codes, ended = run.codes(only=left)
    print(f"{kind}, process {process}: the others ended after {ended - began:.2f} s: {codes}")
    assert all(codes[i] not in (0, 42) for i in left)
    return run, left, ended - began


FAULTS = [
    pytest.param("raise", 1, 2, "the disk of this host is gone", id="raise 1", marks=full),
    pytest.param("hang", 1, WATCHDOG_S + 2, f"no progress for {WATCHDOG_S} s in", id="hang 1"),
    pytest.param("kill", 1, HEARTBEAT_S + 5, "", id="kill 1", marks=full),
    pytest.param("raise", 0, 2, "the disk of this host is gone", id="raise 0", marks=full),
    pytest.param("hang", 0, WATCHDOG_S + 2, "no progress for", id="hang 0", marks=full),
    pytest.param("kill", 0, HEARTBEAT_S + 5, "", id="kill 0", marks=full),
    pytest.param("freeze", 0, HEARTBEAT_S + 5, "", id="freeze 0", marks=full),
    pytest.param("freeze", 1, HEARTBEAT_S + 5, "", id="freeze 1", marks=full),
]


@pytest.mark.parametrize(("kind", "process", "limit_s", "reason"), FAULTS)
def test_a_fault_of_one_process_ends_all_in_time(
    kind, process, limit_s, reason, tmp_path, programs
):
    run, left, seconds = disturbed(tmp_path, programs, kind, process)
    assert seconds < limit_s
    for index in left:
        said = run.text(index)
        assert reason in said, said[-4000:]
        assert "most recent call" in said  # where it stood
    if kind == "raise":
        assert "RuntimeError: the disk of this host is gone" in run.text(process)
        assert f"ended with process {process}" in run.text(1 - process)


def test_all_go_back_from_a_spike_together_and_the_slow_one_is_named(tmp_path, programs):
    flags = (
        *("--config.steps=26", "--config.checkpoint_every=8", "--config.schedule.peak=1e-2"),
        "--config.spikes={'policy': 'rollback', 'threshold': 8.0, 'window': 8}",
        *("--config.ema_decay=0.0", "--config.log_every=2"),
    )
    faults = {0: "wrong@20", 1: "wrong@20 late@0.5"}
    with Run(tmp_path, *flags, cache=programs, faults=faults) as run:
        assert run.codes()[0] == [0, 0], run.text()[-4000:]
    assert "Going back to step 16." in run.text(0)
    assert re.search(r"process 1 \(.*\) keeps the others waiting: it was late for", run.text(0))
    assert rollbacks.read(tmp_path) == [rollbacks.Rollback(16, 21, 21)]
    steps = [row["step"] for row in metrics.read(tmp_path) if "train/loss" in row]
    assert steps == list(range(2, 27, 2))
    folder = tmp_path / "bad_batches"
    held = [json.loads((folder / f"21-{i}.json").read_text()) for i in (0, 1)]
    assert held[0]["loss"] == held[1]["loss"] and held[0]["keys"] != held[1]["keys"]


def test_processes_that_differ_are_told_what_differs(tmp_path, programs):
    with Run(tmp_path, *TRAINED, own={1: ["--config.seed=7"]}, cache=programs) as run:
        assert run.codes()[0] == [2, 2], run.text()[-4000:]
    for index in (0, 1):
        said = run.text(index)
        assert "error: The processes of this run differ: config.seed is 7 on process 1" in said
        assert "Traceback" not in said


def test_a_cluster_that_cannot_be_joined_is_one_line(tmp_path, programs):
    with Run(tmp_path, "--config.cluster.join_s=3", only=[1], cache=programs) as run:
        assert run.codes()[0] == [1], run.text()[-4000:]
    (line,) = (line for _, _, line in run.lines if line.startswith("vlrep: "))
    assert "error: process 1 of 2 could not join the others at 127.0.0.1:" in line
    assert "Traceback" not in run.text() and "Fatal" not in run.text()


def test_the_launcher_starts_again_after_a_stop_before_the_processes_met(tmp_path, programs):
    """One that is told before it has joined cannot tell the others: the launcher does."""
    launched = local(
        tmp_path / "run",
        *TRAINED,
        cache=programs,
        fault=f"once@{tmp_path / 'once'}",
        options=["--restarts=1"],
    )
    assert launched.returncode == 0, launched.stdout[-4000:]
    assert "[local] process 1 ended with 42" in launched.stdout
    assert "[local] restart 1 of 1" in launched.stdout
    assert "[0] step 12/12" in launched.stdout
