"""What the loop does while a step runs, and whether it says the truth about waiting for data."""

import itertools
import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from vlrep_jax.session import Session
from vlrep_jax.timing import Clock, DeviceWatch, Interval
from vlrep_jax.train import TrainState, fit


class Leaf:
    """Of a step that ends when `ended` is set; `jax.block_until_ready` asks leaves of a tree."""

    def __init__(self, ended, note=lambda: None):
        self.ended, self.note = ended, note

    def block_until_ready(self):
        self.ended.wait()
        self.note()
        return self


class Batches:
    """A loader that is ready with a batch every so many seconds, with these rows bad."""

    def __init__(self, seconds, reasons=()):
        self.seconds, self.reasons, self.bad_reasons = seconds, reasons, Counter()

    def __next__(self):
        time.sleep(self.seconds)
        self.bad_reasons.update(self.reasons)
        bad = np.arange(8) < len(self.reasons)
        return {"image": None, "bad": bad, "truncated": np.zeros(8, bool)}


@pytest.mark.parametrize(
    ("data_s", "step_s", "truth"),
    [(0.06, 0.0, 1.0), (0.0, 0.06, 0.0), (0.04, 0.08, 0.0), (0.12, 0.06, 0.5)],
)
def test_the_share_of_waiting_is_the_devices(data_s, step_s, truth):
    """One step is in flight while the next batch is made: only what exceeds it is waiting."""
    # Other work on the machine delays any of these threads, but not every time.
    shares = (share_of_waiting(data_s, step_s) for _ in range(20))
    assert any(abs(share - truth) < 0.2 for share in shares)


def share_of_waiting(data_s, step_s):
    """train/data_wait_fraction of eight steps, as a session books them."""
    clock, watch = Clock(), DeviceWatch()
    session = SimpleNamespace(
        clock=clock,
        watch=watch,
        batches=Batches(data_s),
        counts={"bad": 0, "truncated": 0},
        experiment=SimpleNamespace(put=lambda batch: batch),
    )
    made = Session.device_batches(session)
    clock.lap("set-up")
    interval, previous = Interval(0, clock), None
    for number in range(8):
        next(made)
        ended = threading.Event()
        threading.Timer(step_s, ended.set).start()
        leaf = Leaf(ended)
        watch.follow(number, {"loss": leaf})
        if previous is not None:
            previous.block_until_ready()
        previous = leaf
    clock.lap("training")
    watch.close()
    # The first batch is always waited for, and threads start a little late.
    return interval.until(8, 1)["train/data_wait_fraction"]


def test_bad_samples_are_counted_by_reason_on_top_of_what_a_checkpoint_holds():
    session = SimpleNamespace(
        clock=Clock(),
        watch=SimpleNamespace(finished_at=lambda: 0.0),
        batches=Batches(0, ["format", "format", "missing"]),
        counts={"bad": 10, "truncated": 1, "bad/format": 9, "bad/empty": 1},
        experiment=SimpleNamespace(put=lambda batch: batch),
    )
    made = Session.device_batches(session)
    assert [next(made), next(made)] == [{"image": None}] * 2
    counts = {"bad": 16, "truncated": 1, "bad/format": 13, "bad/empty": 1, "bad/missing": 2}
    assert session.counts == counts


def test_the_next_batch_is_on_its_way_before_a_step_is_waited_for():
    events, done = [], threading.Event()
    done.set()

    def batches():
        for number in itertools.count(1):
            events.append(f"put {number}")
            yield number

    def step(state, batch):
        leaf = Leaf(done, lambda: events.append(f"wait {batch}"))
        metrics = dict.fromkeys(("loss", "gradient_norm", "parameter_norm"), 1.0)
        return state._replace(step=batch), {"leaf": leaf, **metrics}

    def nothing(*_):
        pass

    fit(
        TrainState(0, None, None, None),
        step,
        batches(),
        steps=6,
        on_step=nothing,
        on_result=lambda _, values: values["leaf"].block_until_ready(),
        save=nothing,
        evaluate=nothing,
        log_every=100,
        eval_every=100,
        checkpoint_every=100,
        should_stop=lambda _: False,
    )
    for number in range(1, 6):
        assert events.index(f"put {number + 1}") < events.index(f"wait {number}")
    for number in range(3, 7):  # at most two batches beside the one that a step holds
        assert events.index(f"wait {number - 2}") < events.index(f"put {number}")
