"""metrics.jsonl and TensorBoard events through crashes and resumes, and the progress display."""

import contextlib
import io
import json
import math
import os
import resource
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from vlrep_jax import metrics
from vlrep_jax.metrics import MetricsWriter, Progress, read


def tensorboard_events(workdir):
    """The events of all files in order; a record is length, checksum, bytes, checksum."""
    events = []
    for path in sorted((workdir / "tb").iterdir()):
        data = path.read_bytes()
        while len(data) >= 16:
            (length,) = struct.unpack("<Q", data[:8])
            if len(data) < 16 + length:
                break  # a killed process was writing it
            for part, check in ((data[:8], 8), (data[12 : 12 + length], 12 + length)):
                assert masked_crc32c(part) == struct.unpack("<I", data[check : check + 4])[0]
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def shown(workdir, tag):
    """[(step, value)] of a scalar as TensorBoard shows it: a file may hide some of earlier ones."""
    points = []
    for event in tensorboard_events(workdir):
        if event.session_log.status == SessionLog.START:
            points = [point for point in points if point[0] < event.step]
        points += [(event.step, v.simple_value) for v in event.summary.value if v.tag == tag]
    return points


def scalars(workdir):
    return [
        (e.step, v.tag, v.simple_value)
        for e in tensorboard_events(workdir)
        for v in e.summary.value
    ]


def write_steps(workdir, steps, **options):
    with MetricsWriter(workdir, **options) as writer:
        for step in steps:
            writer.write(step, {"train/loss": 10 - step})


def test_a_line_is_one_object_with_the_step_first(tmp_path):
    with MetricsWriter(tmp_path / "new") as writer:
        writer.write(np.int64(3), {"b": jnp.float32(0.5), "a": 2, "c": np.float64(1e-9)})
        # Read before close: every write is on disk when it returns.
        lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    assert lines == ['{"step": 3, "b": 0.5, "a": 2.0, "c": 1e-09}']
    assert scalars(tmp_path / "new") == [(3, "b", 0.5), (3, "a", 2), (3, "c", np.float32(1e-9))]


def test_a_step_may_be_written_twice(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": 4})
        writer.write(1, {"unseen/recall": 0.5})
    assert read(tmp_path) == [{"step": 1, "train/loss": 4}, {"step": 1, "unseen/recall": 0.5}]


def test_not_a_number_is_valid_json_and_comes_back(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": jnp.float32(-jnp.inf)})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["a"] == "NaN"
    (row,) = read(tmp_path / "metrics.jsonl")
    assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf


def test_step_is_no_metric_and_a_metric_is_a_scalar(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="'step'"):
            writer.write(1, {"step": 2})
        with pytest.raises(TypeError):
            writer.write(1, {"a": np.zeros(3)})
    assert read(tmp_path) == []


def test_resume_drops_later_steps_in_both_records(tmp_path):
    write_steps(tmp_path, range(6))
    write_steps(tmp_path, range(4, 8), start_step=3)
    assert [row["step"] for row in read(tmp_path)] == [0, 1, 2, 3, 4, 5, 6, 7]
    starts = [e.step for e in tensorboard_events(tmp_path) if e.session_log.status]
    assert starts == [4]  # TensorBoard hides the earlier file's steps from here on
    assert SessionLog.START == 1


def test_new_run_asks_tensorboard_to_hide_nothing(tmp_path):
    write_steps(tmp_path, range(3))
    assert not any(e.session_log.status for e in tensorboard_events(tmp_path))


def test_resume_keeps_names_values_and_nan(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"wörter": 0.1, "lost": math.nan})
        writer.write(2, {"a": 1})
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()
    MetricsWriter(tmp_path, start_step=1).close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == before[:1]


@pytest.mark.parametrize("cut", [1, 2, 9, 24])
def test_torn_last_line_is_repaired(tmp_path, cut):
    """A crash in the middle of a write; cut 1 loses the newline alone, and with it no number."""
    write_steps(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    kept = [1, 2] if cut == 1 else [1]
    assert [row["step"] for row in read(tmp_path)] == kept
    write_steps(tmp_path, [3], start_step=2)
    assert [row["step"] for row in read(tmp_path)] == [*kept, 3]
    assert path.read_bytes().count(b"\n") == len(kept) + 1


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_killed_process_costs_tensorboard_at_most_what_comes_again(tmp_path, cut):
    """Every write is with the system when it returns, so nobody closes anything here."""
    first = MetricsWriter(tmp_path)
    for step in range(6):
        first.write(step, {"train/loss": step})
    (path,) = (tmp_path / "tb").iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    assert [step for step, _ in shown(tmp_path, "train/loss")] == [0, 1, 2, 3, 4]
    second = MetricsWriter(tmp_path, start_step=3)  # within the same second
    for step in range(4, 8):
        second.write(step, {"train/loss": -step})
    assert shown(tmp_path, "train/loss") == [(s, s if s < 4 else -s) for s in range(8)]


def test_going_back_drops_later_steps_in_both_records(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"train/loss": step})
        writer.rewind(2)
        writer.write(3, {"train/loss": 30})
        writer.rewind(0)
        writer.write(1, {"train/loss": 100})
    assert read(tmp_path) == [{"step": 1, "train/loss": 100}]
    assert shown(tmp_path, "train/loss") == [(1, 100)]


def test_a_run_that_begins_again_drops_what_was_written_of_step_0(tmp_path):
    """An evaluation before the first step, say, of a run that was killed before its first save."""
    for value in (1, 2):
        with MetricsWriter(tmp_path) as writer:
            writer.write(0, {"train/loss": value})
    assert read(tmp_path) == [{"step": 0, "train/loss": 2}]
    assert shown(tmp_path, "train/loss") == [(0, 2)]


@contextlib.contextmanager
def files_no_larger_than(size):
    """As a full disk: what goes beyond is written up to there, then refused."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("room", range(30, 131, 20))
def test_rows_wait_while_the_disk_is_full_and_none_is_lost_or_torn(tmp_path, room, capsys):
    with MetricsWriter(tmp_path, total_steps=9) as writer:
        with files_no_larger_than(room):
            for step in range(6):
                writer.write(step, {"train/loss": step})
            with pytest.raises(OSError, match="File too large"):
                writer.sync()
        assert capsys.readouterr().err.count("could not be written") == 1
        writer.write(6, {"train/loss": 6})
        writer.sync()
        assert [row["step"] for row in read(tmp_path)] == list(range(7))
        assert [step for step, _ in shown(tmp_path, "train/loss")] == list(range(7))
    writer = MetricsWriter(tmp_path, start_step=6)
    with files_no_larger_than(room):
        writer.write(7, {"train/loss": 7})
        with pytest.raises(OSError, match="File too large"):
            writer.close()  # nobody is told that all is well


def test_values_beyond_float32_are_infinite_in_tensorboard(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(300, {"ü": 1e39, "b": -1e300, "c": math.nan})
    assert [(step, value) for step, _, value in scalars(tmp_path)][:2] == [
        (300, math.inf),
        (300, -math.inf),
    ]
    assert shown(tmp_path, "ü") == [(300, math.inf)]


def test_crash_during_the_rewind_loses_nothing(tmp_path, monkeypatch):
    write_steps(tmp_path, range(5))

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            MetricsWriter(tmp_path, start_step=2)
    assert [row["step"] for row in read(tmp_path)] == [0, 1, 2, 3, 4]
    MetricsWriter(tmp_path, start_step=2).close()
    assert [row["step"] for row in read(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("line", ["what is this", "[1]", '{"loss": 1}'])
def test_a_foreign_line_is_named_not_dropped(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is no metrics row"):
        MetricsWriter(tmp_path, start_step=2)


def test_other_processes_write_and_show_nothing(tmp_path, capsys):
    write_steps(tmp_path / "run", range(3), is_writer=False, total_steps=3)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_no_terminal_gets_a_line_every_so_often():
    now, out = [0.0], io.StringIO()
    progress = Progress(100, start_step=10, stream=out, every_s=10, clock=lambda: now[0])
    progress.show({"loss": 5.4321, "images/s": 1234.5})
    for step in range(11, 41):
        now[0] += 0.5
        progress.advance(step)
    progress.close()
    # 19 steps in the 9.5 s after the first leave 70 at the same pace: 35 s.
    assert out.getvalue().splitlines() == [
        "step 30/100  loss 5.43  images/s 1,234  0:35 left",
        "step 40/100  loss 5.43  images/s 1,234  0:30 left",
    ]


def test_terminal_gets_a_bar_with_loss_rate_and_time():
    out = Terminal()
    progress = Progress(10, stream=out)
    progress.show({"loss": 2.5, "images/s": 310})
    progress.advance(10)
    progress.close()
    assert all(text in out.getvalue() for text in ("10/10", "loss 2.5", "images/s 310", "left"))


def test_writer_feeds_the_display(tmp_path, capsys):
    with MetricsWriter(tmp_path, total_steps=4) as writer:
        writer.write(4, {"train/loss": 1.5, "train/images_per_second": 99, "other": 7})
        writer.advance(4)
    assert capsys.readouterr().err == "step 4/4  loss 1.5  images/s 99\n"


def test_durations_read_as_a_clock():
    assert [metrics._duration(s) for s in (0.4, 59.6, 3599, 36061)] == [
        "0:00",
        "1:00",
        "59:59",
        "10:01:01",
    ]
