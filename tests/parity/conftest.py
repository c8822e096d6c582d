"""The originals' own classes beside ours; collected only where PyTorch is installed."""

import sys
from importlib.util import find_spec
from pathlib import Path

collect_ignore_glob = []
if find_spec("torch") is None or find_spec("open_clip") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import torch

    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import sides

    sides.declare_missing_operators(torch)
