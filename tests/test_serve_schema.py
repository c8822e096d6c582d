"""Whatever a client sends, what the schema allows and what it does not, the server answers as its
own OpenAPI schema says, and never with an error of its own."""

import subprocess
import sys
from pathlib import Path

from serving import index_of, live

# A schema cannot say which bytes are a picture, nor that one of several things must be given; and
# each method of /api/search is a route of its own, which `Allow` names alone.
LEFT_OUT = "positive_data_acceptance,allow_header_conformance"


def test_answers_are_those_of_the_schema(tmp_path):
    command = Path(sys.executable).with_name("schemathesis")
    with live(index_of(tmp_path, 12)) as address:
        done = subprocess.run(
            [
                command,
                "run",
                f"{address}openapi.json",
                "--max-examples=15",
                "--seed=1",
                "--phases=coverage,fuzzing",
                f"--exclude-checks={LEFT_OUT}",
                "--suppress-health-check=all",
                "--no-color",
            ],
            cwd=tmp_path,  # it keeps what it learnt where it runs
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 selected / 6 total" in done.stdout
