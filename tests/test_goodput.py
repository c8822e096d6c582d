"""Where a run's time went over its sessions, worked by hand."""

import json

import pytest

from vlrep_jax import goodput
from vlrep_jax.goodput import AGAIN, BETWEEN, PRODUCTIVE, SKIPPED, Ledger, Line, parts_of


def line(session, began, at, start, step, training, skipped=0, **other):
    return Line(session, began, at, start, step, skipped, {PRODUCTIVE: training, **other})


def test_steps_that_are_done_again_do_not_count():
    """Session 0 saved step 10 and was killed at 15; session 1 went on from 10."""
    lines = [
        line(0, 0, 30, 0, 10, 20, saving=10),
        line(0, 0, 45, 0, 15, 30, saving=15),
        line(1, 60, 85, 10, 20, 20, saving=5),
    ]
    parts = parts_of(lines)
    assert parts == {PRODUCTIVE: 20 + 20, AGAIN: 10, BETWEEN: 15, "saving": 20}
    assert sum(parts.values()) == 85
    assert goodput.share(parts) == pytest.approx(40 / 85)
    assert goodput.words(parts) == (
        "Goodput 47.1% of 85 s since the run began; the rest: saving 23.5%, between sessions 17.6%,"
        " steps done again 11.8%."
    )


def test_going_back_takes_from_all_sessions_that_came_further():
    """Session 2 begins at 5: of session 1, which began at 10, nothing counts."""
    lines = [
        line(0, 0, 10, 0, 5, 10),
        line(0, 0, 20, 0, 10, 20),
        line(1, 20, 30, 10, 15, 10),
        line(2, 30, 40, 5, 10, 10),
    ]
    assert parts_of(lines) == {PRODUCTIVE: 10 + 10, AGAIN: 10 + 10}


def test_steps_that_changed_nothing_do_not_count():
    assert parts_of([line(0, 0, 50, 0, 10, 50, skipped=2)]) == {PRODUCTIVE: 40, SKIPPED: 10}


def test_nothing_is_known_of_no_session():
    assert parts_of([]) == {} and goodput.share({}) == 0


def test_a_ledger_is_written_at_saves_and_every_half_minute_and_survives_a_torn_line(tmp_path):
    now = [1000.0]

    def ledger(step, seconds, skipped=0):
        return Ledger(tmp_path, step, skipped, seconds=seconds, clock=lambda: now[0])

    seconds = {PRODUCTIVE: 4.0}
    first = ledger(0, seconds)  # which began 4 s ago
    for step in range(1, 101):
        now[0] += 1
        seconds[PRODUCTIVE] += 1
        first.note(step, 3, now=step == 50)
    path = tmp_path / goodput.FILE_NAME
    lines = goodput.read(path)
    assert [line.step for line in lines] == [1, 32, 50, 81]
    assert lines[0].began == 996 and lines[-1].seconds == {PRODUCTIVE: 85}
    assert first.parts() == {PRODUCTIVE: pytest.approx(104 * 0.97), SKIPPED: pytest.approx(3.12)}
    # Killed in the middle of a line.
    path.write_bytes(path.read_bytes()[:-20])
    now[0] += 40
    second = ledger(50, {PRODUCTIVE: 0.0}, skipped=3)
    second.note(50, 3, now=True)
    assert [(line.session, line.step) for line in goodput.read(path)] == [
        *((0, 1), (0, 32), (0, 50)),
        (1, 50),
    ]
    assert second.parts()[BETWEEN] == 1140 - 1050  # of which nobody knows anything
    path.write_bytes(path.read_bytes() + b'[]\n{"session": 1}\n\xff\n' + torn(lines[-1]) + b"\n")
    assert len(goodput.read(path)) == 4  # what else stands there is passed over


def torn(line):
    return json.dumps(line._asdict() | {"seconds": {PRODUCTIVE: "x"}}).encode()


def test_a_full_disk_disturbs_no_ledger(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    kept = Ledger(tmp_path, 0, 0, seconds={PRODUCTIVE: 1.0})
    monkeypatch.setattr("builtins.open", full)
    kept.note(1, 0, now=True)
    assert kept.parts() == {PRODUCTIVE: 1}
