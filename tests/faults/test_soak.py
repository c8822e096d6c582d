"""Three minutes of `soak.py`; VLREP_FAULTS=full is an hour."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import soak

FULL = os.environ.get("VLREP_FAULTS") == "full"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


def test_whatever_happens_the_run_ends_as_one_that_nobody_disturbed(tmp_path):
    """Which `soak.main` asserts."""
    figures = soak.main(*((3600, 300) if FULL else (180, 40)), 0, tmp_path)
    print(figures)
    assert sum(figures.get(kind, 0) for kind in soak.KINDS) >= 3 and figures["steps"] > 20
    for first, last, _ in figures["MiB at first, at last, in s"]:
        assert last < (1.05 if FULL else 1.1) * first, figures
    # Pools of threads begin some of theirs late.
    assert figures["more open files"] <= 2 and figures["more threads"] <= 4, figures
