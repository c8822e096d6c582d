"""`vlrep serve` as a program: what it prints, how it ends, whom it answers."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from searching import draw_many, saved

from vlrep_jax import search, weights

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = [sys.executable, "-c", "from vlrep_jax import cli; cli.main()", "serve"]


def started(*words):
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.Popen(
        [*PROGRAM, *map(str, words)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    top = tmp_path_factory.mktemp("command")
    path = saved(top / "model")
    loaded = weights.load(path)
    draw_many(top / "photos", 5)
    search.build(top / "index", loaded, search.described(loaded, path), [str(top / "photos")])
    return top / "index"


def test_it_says_where_it_serves_and_stops_when_told(index):
    process = started(index, "--port=0")
    try:
        line = process.stdout.readline()
        said = re.fullmatch(
            r"Serving 5 pictures at (http://127\.0\.0\.1:(\d+)/) \(Ctrl-C stops it\)\.\n", line
        )
        assert said, line + process.stderr.read()
        address, port = said.groups()
        found = httpx.get(f"{address}api/search", params={"text": "a dog"}, timeout=60).json()
        assert len(found["results"]) == 5
        # A page of another site reaches this machine under a name of its own: it gets nothing.
        other = httpx.get(f"{address}api/pictures", headers={"host": "pictures.example"})
        assert other.status_code == 400 and "results" not in other.text

        taken = started(index, f"--port={port}")
        out, err = taken.communicate(timeout=60)
        assert taken.returncode == 2 and not out
        assert err == (
            f"vlrep: error: port {port} of 127.0.0.1 is in use: name another, as in "
            f"--port={int(port) + 1}, or --port=0 for any that is free.\n"
        )

        # One that sends nothing more of its picture does not keep it from stopping.
        with socket.create_connection(("127.0.0.1", int(port))) as stalled:
            stalled.sendall(
                b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "Stopped.\n", "")
    finally:
        process.kill()
        process.communicate()


def test_what_it_cannot_serve_is_said_in_a_line(index, tmp_path, capsys):
    from vlrep_jax import cli

    for words, what in (
        ([tmp_path], "there is no index; make one: vlrep index"),
        ([index, "--batch=0"], "--batch=0 must be from 1 to 64"),
        ([index, "--model=nowhere"], "no such file or directory"),
        ([index, "--host=no.such.host.invalid"], "is no address"),
        ([index, "--port=99999"], "must be from 0 to 65535"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["serve", "--port=0", *map(str, words)])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and not out
        assert err.startswith("vlrep: error: ") and err.count("\n") == 1 and what in err
