"""Batches made by worker processes: the same ones, and a clear end when a process is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from emoji_data import ListSource, encoded, flat, grey_source, noise
from spying_source import Spy
from test_data_pipeline import assert_equal, batches, emoji_batches, taken

from vlrep_jax.data.sources import Sample
from vlrep_jax.data.transforms import TRANSFORMS
from vlrep_jax.data.workers import WorkerDied

ROOT = Path(__file__).resolve().parent.parent


def processes(made):
    return [worker._process for worker in made._iterator._workers]


@pytest.mark.parametrize("count", [1, 3])
def test_workers_give_the_batches_of_threads(count):
    assert_equal(taken(emoji_batches(num_workers=count), 6), taken(emoji_batches(), 6))


def test_parts_of_a_batch_come_in_their_order():
    source = grey_source(50)  # 200 rows of a host are made in parts of 64, 64, 64 and 8
    options = {"batch_size": 400, "process_index": 1, "process_count": 2}
    plain = taken(batches(source, **options), 3)
    assert_equal(taken(batches(source, num_workers=2, prefetch=2, **options), 3), plain)


@pytest.mark.parametrize("stop", [0, 5])
def test_a_position_moves_between_threads_and_workers(stop):
    whole = taken(emoji_batches(), 8)
    first = emoji_batches(num_workers=1)
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.state()))
    first.close()
    for count in (0, 2 if stop else 1):
        second = emoji_batches(num_workers=count)
        next(second)  # what was begun ahead is dropped
        second.restore(state)
        assert_equal(taken(second, 8 - stop), whole[stop:])


def test_bad_samples_are_counted_through_processes():
    source = grey_source(20, i7={"image": b"nothing"})
    made, plain = batches(source, num_workers=2), batches(source)
    assert_equal([next(made) for _ in range(10)], [next(plain) for _ in range(10)])
    assert made.bad_reasons == plain.bad_reasons == {"format": 4}
    made.close(), plain.close()


def test_an_error_in_a_worker_is_the_runs():
    source = ListSource([Sample(b"", ("text",), "key0", {})])
    with pytest.raises(ValueError, match=r"16 samples in a row are bad .*key0"):
        next(batches(source, num_workers=1))


class Failing(ListSource):
    def __getitems__(self, indices):
        raise Unpicklable(lambda: 0)


class Unpicklable(Exception):
    pass


def test_an_error_that_cannot_be_sent_keeps_its_words():
    with pytest.raises(RuntimeError, match="Unpicklable: <function"):
        next(batches(Failing(grey_source(4)._samples), num_workers=1))


def test_a_cache_is_refused_where_no_process_shares_it():
    with pytest.raises(ValueError, match=r"num_workers=1 with cache=True"):
        batches(grey_source(4), num_workers=1, cache=True)


class Slow(ListSource):
    """Takes 10 ms a sample."""

    def __getitems__(self, indices):
        time.sleep(0.01 * len(indices))
        return super().__getitems__(indices)


@pytest.mark.parametrize("when", [0.0, 0.05])
def test_a_killed_worker_ends_the_run_within_what_was_made_ahead(when):
    made = batches(Slow(grey_source(20)._samples), num_workers=2)
    next(made)
    time.sleep(when)
    processes(made)[1].send_signal(signal.SIGKILL)
    came = 0
    with pytest.raises(WorkerDied, match=r"ended \(signal 9, as when memory runs out\)"):
        for came in range(50):  # noqa: B007
            next(made)
    assert came <= 4 + 1  # prefetch, and the batch that was begun
    others = processes(made)
    made.close()
    assert all(process.poll() is not None for process in others)


class Hanging(ListSource):
    """Answers a process once, as a remote store that went away."""

    calls = 0

    def __getitems__(self, indices):
        self.calls += 1
        time.sleep(60 if self.calls > 1 else 0)
        return super().__getitems__(indices)


PARENT = """
import sys, time
sys.path[:0] = [{tests!r}]
from test_data_workers import Hanging, batches, grey_source, processes
made = batches(Hanging(grey_source(20)._samples), num_workers=2, prefetch=1)
next(made)
print(*[process.pid for process in processes(made)], flush=True)
time.sleep(60)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_workers_die_with_a_killed_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(tests=str(ROOT / "tests"))],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2 and all(map(alive, workers))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))


def test_workers_load_neither_jax_nor_grain():
    made = batches(Spy(grey_source(4)._samples), num_workers=1, max_bad_fraction=1.0)
    for _ in range(3):
        next(made)
    made.close()
    assert not made.bad_reasons


def resident_mb(pid):
    (line,) = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in x]
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_memory_of_a_worker_stays_flat():
    """`VLREP_SAMPLES=100000 pytest tests/test_data_workers.py -k flat` is the full form."""
    samples = int(os.environ.get("VLREP_SAMPLES", 12_800))
    pictures = [flat(i, side=16) for i in range(50)]
    source = ListSource([Sample(p, (f"number {i}",), str(i), {}) for i, p in enumerate(pictures)])
    made = batches(source, batch_size=64, num_workers=1)
    seen = []
    for number in range(samples // 64):
        next(made)
        if number % max(samples // 64 // 20, 1) == 0:
            seen.append(resident_mb(processes(made)[0].pid))
    made.close()
    print([round(mb, 1) for mb in seen])
    # The first tenth fills pools and caches; a leak of a thumbnail a sample would show as 9 MB.
    assert seen[-1] - seen[2] < 4, seen


def test_large_pictures_leave_no_memory_behind():
    image = noise(300, 400)
    source = ListSource([Sample(encoded(image, "JPEG"), ("a",), str(i), {}) for i in range(8)])
    made = batches(
        source, batch_size=16, num_workers=1, transform=partial(TRANSFORMS["random_crop"], size=224)
    )
    kept = [next(made) for _ in range(3)]
    copies = [batch["image"].copy() for batch in kept]
    for _ in range(10):
        next(made)  # shared memory is used again; what was returned is not
    made.close()
    for batch, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(batch["image"], copy)
