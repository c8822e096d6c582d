"""A short form of `corruption.py`; VLREP_FAULTS=full is all of it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import corruption

FULL = os.environ.get("VLREP_FAULTS") == "full"


def test_damaged_checkpoints_are_never_silently_wrong_and_never_crash(tmp_path):
    figures, wrong = corruption.main(*((500, 0) if FULL else (25, 1)), tmp_path)
    print(figures)
    assert not wrong
    assert figures["silently wrong"] == figures["crashes"] == 0
    # Some damage was noticed, or nothing was tested.
    assert sum(count for name, count in figures.items() if name.startswith("noticed")) >= 5
