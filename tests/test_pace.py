"""Steps that take long, and processes that are late for them."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from vlrep_jax.pace import Pace, measured
from vlrep_jax.timing import Timed


def test_a_process_is_late_when_it_begins_late_or_does_not_run():
    timed = {
        4: Timed(0.0, 0.0, 1.0),  # of before
        5: Timed(1.0, 0.5, 2.0),  # begun before the one before it had ended
        6: Timed(2.0, 2.4, 3.0),  # its batch came 0.4 s late
        8: Timed(3.0, 3.0, 9.0),  # stopped from 4 to 8
    }
    found = measured(timed, 5, 4, [(4.0, 8.0), (100.0, 101.0)])
    np.testing.assert_allclose(found, [[1, 1, np.nan, 6], [0, 0.4, np.nan, 4]], rtol=1e-6)


def rows(seconds, *late):
    return np.stack([[seconds, each] for each in late]).astype(np.float32)


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def pace(now):
    return Pace(["process 0 (a)", "process 1 (b)", "process 2 (c)"], clock=lambda: now[0])


def test_nothing_is_said_of_even_steps(pace):
    none = [0.0] * 4
    values, lines = pace.judge(1, rows([0.2, 0.21, 0.2, 0.25], none, [0, 0, 0.02, 0], none))
    assert lines == []
    assert values == {
        "time/step_median_s": pytest.approx(0.205),
        "time/step_max_s": pytest.approx(0.25),
        "time/slowest_process": 1,
        "time/slowest_late_fraction": pytest.approx(0.02 / 0.86),
    }


def test_a_step_that_stands_out_is_told_with_who_was_late(pace, now):
    none = [0.0] * 3
    _, lines = pace.judge(7, rows([0.2, 3.2, 0.2], none, none, [0, 2.9, 0]))
    assert (
        lines[0] == "Step 8 took 3.2 s, 16 times the median of 0.2 s: process 2 (c) was 2.9 s late."
    )
    _, lines = pace.judge(10, rows([0.2, 3.2, 0.2], none, none, none))
    assert lines == []  # not twice within ten seconds
    now[0] += 11
    _, lines = pace.judge(13, rows([0.2, 0.2, 2.2], none, none, none))
    assert lines == [
        "Step 15 took 2.2 s, 11 times the median of 0.2 s: no process was late to begin it, so it "
        "is the devices or what is between them."
    ]


def test_who_keeps_the_others_waiting_is_told_once(pace):
    slow = rows([1.0, 1.0], [0.0, 0.0], [0.5, 0.3], [0.1, 0.0])
    values, lines = pace.judge(1, slow)
    assert lines == [
        "process 1 (b) keeps the others waiting: it was late for 40% of the time of steps 1 to 2, "
        "for its data or other work there."
    ]
    assert values["time/slowest_process"] == 1
    assert pace.judge(3, slow)[1] == []
    _, lines = pace.judge(5, slow[[0, 2, 1]])
    assert lines[0].startswith("process 2 (c) keeps")


def test_steps_that_were_not_measured_are_left_out(pace):
    unseen = np.full((3, 2, 2), np.nan, np.float32)
    assert pace.judge(1, unseen) == ({}, [])
    alone = Pace(["process 0 (a)"])
    assert alone.judge(1, rows([np.nan, 0.5], [np.nan, 0.0]))[0] == {
        "time/step_median_s": 0.5,
        "time/step_max_s": 0.5,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="needs SIGSTOP")
def test_a_process_that_was_stopped_knows_it_afterwards():
    program = """
import signal, time
from vlrep_jax.watchdog import Watchdog
with Watchdog(print) as watchdog:
    print("now", flush=True)
    while not watchdog.pauses:
        time.sleep(0.01)
    (begin, end), *_ = watchdog.pauses
    print(end - begin)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as run:
        run.stdout.readline()
        run.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                run.wait(2)
        finally:
            run.send_signal(signal.SIGCONT)
        assert float(run.stdout.readline()) > 1.5
