"""A short form of `kills.py`, one process; VLREP_FAULTS=full is all of it, with two."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kills

FULL = os.environ.get("VLREP_FAULTS") == "full"


def test_kills_lose_no_committed_step_and_tear_nothing(tmp_path):
    figures = kills.main(*((100, 2) if FULL else (10, 1)), 0, tmp_path)
    print(figures)
    for name in (
        "committed steps lost",
        "torn restores",
        "rows missing or twice",
        "replayed losses that differ",
    ):
        assert figures[name] == 0, figures
    assert figures["most steps done again"] <= 2 * kills.EVERY
    assert figures["during a save"] >= 0.7 * figures["kills"] and figures["steps"] > kills.EVERY
