"""Real processes that train the tiny recipe together, to be stopped, frozen and killed.

`python -m pytest tests/faults` runs what is done with them; docs/reliability.md has the figures.
"""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "launch"))
from local import free_port, process_flags  # noqa: E402

PROGRAM = """
import os
from vlrep_jax.cli import main
if os.environ["FAULT"]:
    import faulty
main()
"""
START_S = 900  # generous: processes start and compile beside whatever else runs
# A run that goes on until it is stopped, and whose steps do not depend on how many there will be.
UNENDING = (
    "--config.steps=1000000",
    "--config.schedule={'name': 'constant', 'peak': 3e-3, 'warmup_steps': 2}",
)


class Run:
    """`count` processes of `devices` devices each, on one work directory; ended on exit.

    Attributes:
      lines: [(seconds since the epoch, process, text)] of their merged outputs so far.
      port: at which process 0 is to listen.
    """

    def __init__(
        self,
        workdir,
        *flags,
        own=None,
        count=2,
        only=None,
        devices=2,
        delay_s=0.0,
        faults=None,
        cache=None,
    ):
        """Starts.

        Args:
          flags: of `vlrep train`. own: process -> further ones.
          only: the processes to start; None for all.
          delay_s: every step takes so much longer.
          faults: process -> words for `faulty.py`: what goes wrong there, and at which step.
          cache: directory of compiled programs.
        """
        self.port, self.lines = free_port(), []
        common = [*command(workdir, cache), *flags]
        self.children, self._readers = [], []
        for index in range(count) if only is None else only:
            child = subprocess.Popen(
                [*common, *(own or {}).get(index, ()), *process_flags(self.port, count, index)],
                env=environment(devices, delay_s, (faults or {}).get(index, "")),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            self.children.append(child)
            reader = threading.Thread(target=self._read, args=(index, child.stdout), daemon=True)
            reader.start()
            self._readers.append(reader)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for reader in self._readers:
            reader.join()

    def _read(self, index, stream):
        for line in stream:
            self.lines.append((time.time(), index, line.rstrip("\n")))

    def text(self, index=None):
        """What one process, or all, have said."""
        return "\n".join(line for _, who, line in self.lines if index in (None, who))

    def wait_for(self, pattern, index=None):
        """Waits until a process says something."""
        until = time.monotonic() + START_S
        while not re.search(pattern, self.text(index)):
            ended = [child.poll() for child in self.children]
            assert time.monotonic() < until and None in ended, f"{ended}: {self.text()[-4000:]}"
            time.sleep(0.02)

    def alive(self):
        """Fails where a process has ended by itself."""
        ended = [child.poll() for child in self.children]
        assert set(ended) == {None}, f"{ended}: {self.text()[-4000:]}"

    def send(self, index, number):
        """Sends a signal to one process; returns when."""
        self.children[index].send_signal(number)
        return time.time()

    def codes(self, timeout_s=START_S, only=None):
        """(exit codes, when the last ended) of all processes, or of those given."""
        for index in range(len(self.children)) if only is None else only:
            try:
                self.children[index].wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise AssertionError(
                    f"process {index} still runs after {timeout_s} s: {self.text()[-4000:]}"
                ) from None
        ended = time.time()
        return [child.poll() for child in self.children], ended


def command(workdir, cache):
    """`vlrep train` of the tiny recipe, with faults where the environment says."""
    config = ROOT / "tests" / "tiny_recipe.py"
    return [
        *(sys.executable, "-c", PROGRAM, "train", f"--config={config}", f"--workdir={workdir}"),
        f"--config.compilation_cache={cache or ''}",
    ]


def end_of_run(workdir, steps, flags=UNENDING, **options):
    """What such a run is after so many steps if nobody disturbs it, as `outcome.result`."""
    from outcome import result

    flags = (*flags, f"--config.steps={steps}", f"--config.checkpoint_every={steps}")
    with Run(workdir, *flags, **options) as run:
        codes, _ = run.codes(timeout_s=3600)
        assert set(codes) == {0}, run.text()[-4000:]
    return result(workdir)


def environment(devices, delay_s=0.0, fault=""):
    """Of a process with so many devices, whose steps take so much longer."""
    kept = os.environ.get("XLA_FLAGS", "").split()
    flags = [flag for flag in kept if "device_count" not in flag]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    made = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        PYTHONUNBUFFERED="1",
        XLA_FLAGS=" ".join(flags),
        PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/faults"))),
        SQUARES_DELAY_S=str(delay_s),
        FAULT=fault,
        # So that a second start compiles nothing.
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )
    made.pop("JAX_COMPILATION_CACHE_DIR", None)
    return made


def local(workdir, *flags, cache, fault="", options=()):
    """`launch/local.py` with two processes: its output and exit code."""
    launcher = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes=2", *options]
    return subprocess.run(
        [*launcher, "--", *command(workdir, cache), *flags],
        env=environment(2, fault=fault),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_S,
    )
