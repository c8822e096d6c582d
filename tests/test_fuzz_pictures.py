"""No picture ends the process, hangs it, fills its memory or writes a file.

In full, under a minute: `VLREP_FUZZ=20000 python -m pytest -s tests/test_fuzz_pictures.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = int(os.environ.get("VLREP_FUZZ", 480))
PARTS = 4
PICTURE_S = 10  # of the processor, for all five decodings of one picture
GROWN_MB = 400  # over pictures of up to 4 million pixels, of which several copies may live at once


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("seed", range(PARTS))
def test_every_mutated_picture_is_decoded_or_refused_with_a_reason(seed, tmp_path):
    pytest.importorskip("cv2")
    count = -(-COUNT // PARTS)
    script = Path(__file__).with_name("hostile_pictures.py")
    root = script.parent.parent
    done = subprocess.run(
        [sys.executable, script, str(count), str(seed)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60 + count * 1.0,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    *numbers, last = done.stdout.splitlines() or ["nothing"]
    where = f"picture {last} of seed {seed}: exit code {done.returncode}"
    assert done.returncode == 0, f"{where}\n{done.stderr[-2000:]}"
    report = json.loads(last)
    print(report)
    assert report["pictures"] == len(numbers) >= count
    assert report["slowest_s"][0] < PICTURE_S, report
    assert report["grown_mb"] < GROWN_MB, report
    assert not list(tmp_path.iterdir())
    # The mutations are neither all fatal nor all harmless.
    assert len(report["outcomes"]) >= 4 and report["outcomes"]["decoded"] > count // 20
