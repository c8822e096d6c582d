"""A short form of `corruption.py`, whose full figures stand in docs/reliability.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import corruption


def test_damaged_checkpoints_are_never_silently_wrong_and_never_crash(tmp_path):
    figures, wrong = corruption.main(25, 1, tmp_path)
    assert not wrong
    assert figures["silently wrong"] == figures["crashes"] == 0
    # Some damage was noticed, or nothing was tested.
    assert sum(count for name, count in figures.items() if name.startswith("noticed")) >= 5
