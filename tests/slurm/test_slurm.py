"""`launch/slurm.sbatch` on a real SLURM: told to stop, saved, requeued, continued, nothing lost.

`pytest tests/slurm -n 0` runs it; it is skipped, with the reason, where there can be no SLURM.
"""

import os
import stat
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests/faults")]
from cluster import Slurm, missing  # noqa: E402
from hosts import PROGRAM, environment  # noqa: E402
from outcome import assert_same, result  # noqa: E402

from vlrep_jax import metrics  # noqa: E402

WHY_NOT = missing()
if "PYTEST_XDIST_WORKER" in os.environ:
    WHY_NOT = "`pytest tests/slurm -n 0` runs it: it takes both cores of a machine for a minute"
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
STEPS = 24
LIMIT_S = 240
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("slurm")) as made:
        yield made
    assert made.left() == []


@pytest.fixture(scope="module")
def vlrep(tmp_path_factory):
    """A program that is `vlrep`, with the tiny recipe's data."""
    path = tmp_path_factory.mktemp("bin") / "vlrep"
    path.write_text(f"#!{sys.executable}\n{PROGRAM}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Job:
    """A batch job that trains the tiny recipe in two tasks on one node."""

    def __init__(self, slurm, vlrep, workdir, delay_s, programs):
        self._slurm, self._log = slurm, workdir.with_suffix(".log")
        made = environment(2, delay_s) | {"VLREP": str(vlrep)}
        slurm.environment.update({k: v for k, v in made.items() if k not in ("PATH", "SLURM_CONF")})
        self.name = slurm(
            *("sbatch", "--parsable", "--nodes=1", "--ntasks-per-node=2", f"--output={self._log}"),
            str(ROOT / "launch/slurm.sbatch"),
            *(f"--config={ROOT}/tests/tiny_recipe.py", f"--workdir={workdir}"),
            *(f"--config.compilation_cache={programs}", f"--config.steps={STEPS}"),
            *("--config.checkpoint_every=4", "--config.eval_every=4"),
        ).strip()
        assert self.name.isdigit(), self.name

    def text(self):
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_for(self, condition):
        until = time.monotonic() + LIMIT_S
        while True:
            state = self.state()  # before what is waited for, which may be the end
            if condition():
                return
            told = f"{state} {self.text()[-4000:]}"
            assert state[0] not in OVER and time.monotonic() < until, told
            time.sleep(0.1)

    def state(self):
        return self._slurm.state(self.name)

    def ended(self):
        """What all its starts have said, once it has completed."""
        self.wait_for(lambda: self.state()[0] == "COMPLETED")
        return self.text()


def steps_done(workdir):
    return len(metrics.read(workdir)) if (workdir / metrics.FILE_NAME).exists() else 0


def test_a_job_that_is_told_to_stop_goes_back_into_the_queue_and_loses_nothing(
    slurm, vlrep, tmp_path, programs
):
    """First its tasks are told, then its batch shell, as a preemption or a time limit does."""
    Job(slurm, vlrep, tmp_path / "undisturbed", 0, programs).ended()
    job = Job(slurm, vlrep, tmp_path / "run", 0.3, programs)
    stopped_at = []
    for whom in ([], ["--batch"]):
        starts = len(stopped_at)
        before = steps_done(tmp_path / "run")
        job.wait_for(lambda before=before: steps_done(tmp_path / "run") > before + 2)
        slurm("scancel", "--signal=TERM", *whom, job.name)
        job.wait_for(lambda n=starts: job.text().count("all processes stop at step") >= 2 * (n + 1))
        line = job.text().rpartition("all processes stop at step ")[2]
        stopped_at.append(int(line.split(".")[0]))
        job.wait_for(lambda n=starts: job.state()[1] == n + 1)
    text = job.ended()
    assert 0 < stopped_at[0] < stopped_at[1] < STEPS, stopped_at
    for step in stopped_at:
        assert f"Continuing from step {step} of {STEPS}." in text
    assert text.count("Stopped; what was trained is saved.") == 4  # two tasks, twice
    assert_same(result(tmp_path / "run"), result(tmp_path / "undisturbed"))
    print(f"stopped at {stopped_at}, requeued {job.state()[1]} times, then completed")
