"""An index whose writer is killed with SIGKILL, at any moment: what is there is whole, and a next
run goes on from it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from searching import draw_many, saved

from vlrep_jax import search, weights

# Kills itself before or after the n-th call of a step of the writer.
KILLED = """
import os, signal, sys
from vlrep_jax import cli
from vlrep_jax.search import index, store, writer

step, when, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
where = writer.Writer
real, calls = getattr(where, step), [0]

def wrapped(*args, **kwargs):
    calls[0] += 1
    if calls[0] == number and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if calls[0] == number and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(where, step, wrapped)
index.CHUNK = 8
cli.main(sys.argv[4:])
"""

# In the middle of a chunk: its rows are written, its transaction is not yet begun, or not ended.
MOMENTS = [
    ("_append", "after", 3, 16),
    ("add", "after", 3, 24),
    ("_set", "after", 3, 16),
    ("_compact", "after", 1, 40),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def loaded(model):
    return weights.load(model)


@pytest.mark.parametrize("step, when, number, kept", MOMENTS)
def test_a_killed_run_is_continued(tmp_path, step, when, number, kept, model, loaded):
    draw_many(tmp_path / "photos", 40)
    out = tmp_path / "index"
    words = ["index", f"--model={model}", f"--images={tmp_path / 'photos'}", f"--out={out}"]
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, step, when, str(number), *words],
        env=os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(ValueError, match="is not finished"):
        search.Engine(out)
    again = search.build(out, loaded, search.described(loaded, model), [str(tmp_path / "photos")])
    assert again.embedded == 40 - kept  # nothing twice but the chunk that was cut
    search.build(
        tmp_path / "fresh", loaded, search.described(loaded, model), [str(tmp_path / "photos")]
    )
    text = loaded.encode_text(["a red kangaroo"])[0]
    with search.Engine(out) as one, search.Engine(tmp_path / "fresh") as two:
        found, expected = one.search(text, 40), two.search(text, 40)
    assert [h.picture.found.name for h in found] == [h.picture.found.name for h in expected]
