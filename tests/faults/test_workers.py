"""Two processes with a data worker each: what listens while they train, and a worker that dies."""

import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import pytest
from hosts import Run
from test_data_workers import alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
LIMIT_S = 10
LISTENING = "0A"  # of /proc/net/tcp


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def listening(pid):
    """[(address, port)] at which a process takes connections or datagrams from other machines."""
    mine = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            mine.add(os.readlink(entry))
        except FileNotFoundError:
            continue  # closed meanwhile
    found = []
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        lines = Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
        for words in map(str.split, lines):
            is_open = words[3] == LISTENING or kind.startswith("udp")
            if is_open and f"socket:[{words[9]}]" in mine:
                address, port = words[1].split(":")
                found.append((readable(address), int(port, 16)))
    return found


def readable(address):
    """An address as /proc writes it, words of four bytes in the machine's order; v4 in v6 as v4."""
    words = [address[i : i + 8] for i in range(0, len(address), 8)]
    data = b"".join(struct.pack("=I", int(word, 16)) for word in words)
    if data[:12] == bytes(10) + b"\xff\xff":
        data = data[12:]
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


@pytest.fixture(scope="module")
def seen(tmp_path_factory, programs):
    """(coordinator's port, what listens by process, of workers too, exit codes, seconds, run)."""
    workdir = tmp_path_factory.mktemp("workers")
    flags = ("--config.steps=10000", "--config.data.num_workers=1")
    with Run(workdir, *flags, delay_s=0.05, cache=programs) as run:
        run.wait_for("step ", 0)
        workers = [children(child.pid) for child in run.children]
        assert [len(pids) for pids in workers] == [1, 1]
        listens = [listening(child.pid) for child in run.children]
        of_workers = [listening(pid) for (pid,) in workers]
        (worker,) = workers[1]
        sent = time.time()
        os.kill(worker, signal.SIGKILL)
        codes, ended = run.codes()
        while any(alive(pid) for (pid,) in workers) and time.time() - ended < LIMIT_S:
            time.sleep(0.05)
        left = [pid for (pid,) in workers if alive(pid)]
    print(f"a worker of process 1 killed: all ended after {ended - sent:.2f} s with {codes}")
    return run, listens, of_workers, codes, ended - sent, left


def test_a_dead_data_worker_ends_all_processes_with_the_reason(seen):
    run, _, _, codes, seconds, left = seen
    # Not the code of a mistake, after which no launcher would start the run again.
    assert codes == [1, 1], run.text()[-4000:]
    assert seconds < LIMIT_S
    for index in (0, 1):
        assert "ended (signal 9, as when memory runs out)" in run.text(index), run.text(index)
    assert left == []


def test_nothing_listens_beyond_the_coordinators_address(seen):
    """Besides the coordinator there is gloo in each process, which carries collectives of CPUs."""
    run, listens, of_workers, *_ = seen
    assert ("127.0.0.1", run.port) in listens[0]
    assert {address for found in listens for address, _ in found} == {"127.0.0.1"}, listens
    assert [len(found) for found in listens] == [2, 1], listens
    assert of_workers == [[], []]


def test_what_listens_is_found():
    """Or the test above would pass by looking in the wrong place."""
    with socket.socket() as one, socket.socket(socket.AF_INET6) as other:
        one.bind(("0.0.0.0", 0))
        one.listen()
        other.bind(("::", 0))
        other.listen()
        found = listening(os.getpid())
        assert ("0.0.0.0", one.getsockname()[1]) in found
        assert ("::", other.getsockname()[1]) in found
