"""Runs a command as n processes on this machine that are one run: they start and end together.

python launch/local.py --processes=2 -- vlrep train --config=configs/quickstart.py --workdir=W

Each process gets --coordinator, --processes and --process. Their outputs are merged, each line with
its process in front. It needs nothing but Python.
"""

import argparse
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

STOPPED_CODE = 42  # as in vlrep_jax/exits.py
SETTLE_S = 2.0  # what processes may take from one's stop to their own, before they are told
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def main(argv=None):
    """Runs, again and again where asked to, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help=f"start again so often after exit code {STOPPED_CODE}, unless it was told to stop",
    )
    parser.add_argument(
        "--grace_s",
        type=float,
        default=20.0,
        metavar="S",
        help="how long the others may take once one has ended; then they are killed",
    )
    parser.add_argument("command", nargs="+", help="after --, such as: vlrep train --config=...")
    args = parser.parse_args(argv)
    if args.processes < 1:
        parser.error(f"--processes={args.processes} must be at least 1")
    if args.restarts < 0 or args.grace_s < 0:
        parser.error("--restarts and --grace_s must not be negative")
    if shutil.which(args.command[0]) is None:
        parser.error(f"there is no program {args.command[0]!r}")
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.append(number))
    for attempt in range(args.restarts + 1):
        code = run(args.command, args.processes, args.grace_s, signals)
        if code != STOPPED_CODE or signals or attempt == args.restarts:
            return code
        print(f"[local] restart {attempt + 1} of {args.restarts}", file=sys.stderr, flush=True)


def run(command, count, grace_s, signals):
    """Runs a command as `count` processes until all have ended.

    Args:
      signals: a list that grows with signals to this process; they are passed on.

    Returns:
      The exit code of the first process that failed, 128 + n for signal n; 0 where none did.
    """
    port = free_port()
    children, readers = [], []
    for index in range(count):
        child = subprocess.Popen(
            [*command, *process_flags(port, count, index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            # A terminal's Ctrl-C then reaches them once, through here.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        children.append(child)
        readers.append(threading.Thread(target=_copy, args=(child.stdout, index)))
        readers[-1].start()
    try:
        return _wait(children, grace_s, signals)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()  # a stopped process too
            child.wait()
        for reader in readers:
            reader.join()


def _wait(children, grace_s, signals):
    passed_on, told, failed_at, code = 0, False, None, 0
    while any(child.poll() is None for child in children):
        if len(signals) > passed_on:
            told = True
            for child in children:
                if child.poll() is None:
                    child.send_signal(signals[passed_on])
            passed_on += 1
        failed = [child.returncode for child in children if child.poll() not in (None, 0)]
        if failed and failed_at is None:
            failed_at, code = time.monotonic(), failed[0]
            where = [child.returncode for child in children].index(code)
            _say(f"process {where} ended with {code}; the others have {grace_s:g} s")
        since = 0.0 if failed_at is None else time.monotonic() - failed_at
        # One that stopped before it had joined the others cannot tell them.
        if code == STOPPED_CODE and not told and since > SETTLE_S:
            told = True
            for child in children:
                if child.poll() is None:
                    child.send_signal(signal.SIGTERM)
        if since > grace_s:
            _say("killing what is left")
            break
        time.sleep(0.05)
    code = code or next((c.returncode for c in children if c.returncode), 0)
    return 128 - code if code < 0 else code


def process_flags(port, count, index):
    """How `vlrep` is told which of the processes it is."""
    if count == 1:
        return ["--processes=1"]
    return [f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={index}"]


def free_port():
    """A port of this machine that the system says is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent():
    """In the child, before its program: the kernel kills it should this launcher be killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _copy(stream, index):
    prefix = f"[{index}] ".encode()
    for line in stream:
        sys.stdout.buffer.write(prefix + line.rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()


def _say(text):
    print(f"[local] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
