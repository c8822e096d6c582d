"""Trains with two processes under `launch/local.py` while things happen to them:
`tests/faults/soak.py --seconds=3600`.

At random moments one process gets SIGTERM or SIGKILL, or is frozen for shorter or longer than its
heartbeat may be silent, or the launcher is killed; what has ended is started again. When the time
is over the run is told to stop, and must be what a run is that nobody disturbed for as many steps.
In quiet stretches, in which processes are frozen briefly at most, memory, open files and threads
must not grow.
"""

import argparse
import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hosts import ROOT, START_S, UNENDING, command, end_of_run, environment
from outcome import assert_same, assert_shown, result

from vlrep_jax import goodput, metrics
from vlrep_jax.checkpoint import files

HEARTBEAT_S, GRACE_S = 10, 5
OWN = "{'own': {'name': 'retrieval', 'source': {'name': 'squares', 'count': 16}}}"
FLAGS = (
    *UNENDING,
    f"--config.evals={OWN}",
    "--config.eval_every=50",
    f"--config.cluster.heartbeat_s={HEARTBEAT_S}",
)
OFTEN = ("--config.checkpoint_every=20", "--config.keep_checkpoints=3")
KINDS = ("term", "kill", "freeze", "freeze long", "kill launcher")
MIB = 2**20


class Launched:
    """A launcher and what it says; it is waited for on exit."""

    def __init__(self, workdir, cache):
        launcher = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes=2"]
        launcher.append(f"--grace_s={GRACE_S}")
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (read after the process)
        self.process = subprocess.Popen(
            [*launcher, "--", *command(workdir, cache), *FLAGS, *OFTEN],
            env=environment(1, delay_s=0.05),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.children():
            signal_to(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def text(self):
        self._log.seek(0)
        return self._log.read()

    def children(self):
        """Their process ids, in order."""
        pid = self.process.pid
        try:
            return [int(w) for w in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            return []


def signal_to(pid, number):
    """Sends a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def used(pid):
    """(MiB of memory, open files, threads) of a process; None where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        open_files = len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    value = {line.split(":")[0]: line.split(":")[1].split() for line in status.splitlines()}
    if "VmRSS" not in value:
        return None
    return int(value["VmRSS"][0]) * 1024 / MIB, open_files, int(value["Threads"][0])


class Soak:
    def __init__(self, folder, seed):
        self.workdir, self.cache = folder / "run", folder / "programs"
        self.rng, self.done = np.random.default_rng(seed), collections.Counter()
        self.growth = []  # of each quiet stretch and process: (seconds, used early, used late)

    def step(self):
        """The last step that was written down."""
        path = self.workdir / metrics.FILE_NAME
        rows = metrics.read(path) if path.exists() else []
        return max((row["step"] for row in rows), default=0)

    def trains(self, launched):
        """Waits until a start has come to its steps, or has ended."""
        before, until = self.step(), time.monotonic() + START_S
        while launched.process.poll() is None and self.step() <= before:
            assert time.monotonic() < until, launched.text()[-4000:]
            time.sleep(0.2)

    def quiet(self, launched, seconds):
        """Some time in which no process ends."""
        samples, until = {pid: [] for pid in launched.children()}, time.monotonic() + seconds
        freeze_at = time.monotonic() + seconds / 2
        while time.monotonic() < until:
            assert launched.process.poll() is None, launched.text()[-4000:]
            for pid, own in samples.items():
                own.append((time.monotonic(), *used(pid)))
            if time.monotonic() > freeze_at:
                self.freeze(launched, 2.0)
                freeze_at = until
            time.sleep(0.5)
        for own in samples.values():
            # What is compiled and allocated once comes at first. A save in flight holds memory,
            # files and threads for its time: what is never given back shows in the least of many.
            third = len(own) // 3
            early, late = (np.array(part) for part in (own[third : 2 * third], own[2 * third :]))
            seconds = late[-1, 0] - early[0, 0]
            self.growth.append((seconds, early[:, 1:].min(0), late[:, 1:].min(0)))

    def freeze(self, launched, seconds):
        pid = int(self.rng.choice(launched.children()))
        signal_to(pid, signal.SIGSTOP)
        time.sleep(seconds)
        signal_to(pid, signal.SIGCONT)
        self.done["freeze"] += 1

    def disturb(self, launched):
        """Does one thing; all but a short freeze ends the processes."""
        children = launched.children()
        if len(children) < 2:
            return
        kind, pid = str(self.rng.choice(KINDS)), int(self.rng.choice(children))
        if kind == "freeze":
            return self.freeze(launched, self.rng.uniform(0.2, 0.3 * HEARTBEAT_S))
        self.done[kind] += 1
        if kind == "kill launcher":
            launched.process.kill()
        else:
            numbers = {"term": signal.SIGTERM, "kill": signal.SIGKILL}
            signal_to(pid, numbers.get(kind, signal.SIGSTOP))
        code = launched.process.wait(START_S)
        # Told while it starts, it may not listen yet.
        allowed = {"term": (42, 143), "kill launcher": (-9,)}
        assert code != 0 and code in allowed.get(kind, (code,)), (kind, launched.text()[-4000:])
        while any(used(pid) for pid in children):
            time.sleep(0.05)  # the kernel ends them after their launcher

    def run(self, seconds, quiet_s):
        """Disturbs for so many seconds; the first and each eighth start has a quiet stretch."""
        until, starts = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            with Launched(self.workdir, self.cache) as launched:
                starts += 1
                left_s = round(until - time.monotonic())
                print(f"start {starts}, step {self.step()}, {left_s} s left", file=sys.stderr)
                if starts % 8 == 1:
                    self.trains(launched)
                    self.quiet(launched, quiet_s)
                elif self.rng.random() < 0.7:  # else it is disturbed while it starts
                    self.trains(launched)
                while launched.process.poll() is None and time.monotonic() < until:
                    time.sleep(self.rng.exponential(3.0))
                    self.disturb(launched)
                if launched.process.poll() is None:
                    launched.process.terminate()
                    assert launched.process.wait(START_S) in (42, 143), launched.text()[-4000:]
        return starts


def main(seconds, quiet_s, seed, folder):
    """Figures of so many seconds."""
    soak, began = Soak(folder, seed), time.monotonic()
    starts = soak.run(seconds, quiet_s)
    with Launched(soak.workdir, soak.cache) as launched:  # the last may have saved nothing new
        soak.trains(launched)
        launched.process.terminate()
        assert launched.process.wait(START_S) == 42, launched.text()[-4000:]
    took = time.monotonic() - began
    parts = goodput.parts_of(goodput.read(soak.workdir / goodput.FILE_NAME))
    found = result(soak.workdir)
    assert not list((soak.workdir / "checkpoints").glob("damaged-*"))
    assert files.steps_in(soak.workdir / "checkpoints")[-1] == found[0]
    options = {"count": 2, "devices": 1, "cache": soak.cache}
    assert_same(found, end_of_run(folder / "undisturbed", found[0], flags=FLAGS, **options))
    assert_shown(soak.workdir, found[2])
    return {
        "seconds": round(took),
        "starts": starts + 1,
        **soak.done,
        "steps": found[0],
        "goodput": round(goodput.share(parts), 3),
        "MiB at first, at last, in s": [
            (round(first[0]), round(last[0]), round(s)) for s, first, last in soak.growth
        ],
        "more open files": int(max(last[1] - first[1] for _, first, last in soak.growth)),
        "more threads": int(max(last[2] - first[2] for _, first, last in soak.growth)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--quiet_s", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(main(args.seconds, args.quiet_s, args.seed, Path(scratch)), indent=2))
