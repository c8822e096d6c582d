"""Three short runs whose disk is full for a while: `python disk_full.py FOLDER`.

A limit on the size of files stands for the full disk. FOLDER/outcomes.json: what each run ended in.
"""

import dataclasses
import json
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tiny_recipe import Squares, config

from vlrep_jax import run, session
from vlrep_jax.data.sources import SOURCES

LIMIT = 10_000  # bytes: room for metrics, none for arrays
RUNS = {  # steps during which the disk is full, and what the config says of it
    "recovers": ({3, 4}, "continue"),
    "stops": ({3, 4}, "stop"),
    "full_to_the_end": ({3, 4, 5, 6, 7}, "continue"),
}


def limit_files(size):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def main(folder):
    SOURCES["squares"] = Squares
    # Every array is larger than the limit, and no program is kept, which would meet it too.
    changed = {"checkpoint_every": 1, "steps": 6, "compilation_cache": "", "model.image.width": 64}
    made = session.make_experiment(config(**changed))
    outcomes = {}
    for name, (full, on_save_error) in RUNS.items():
        calls = []

        def put(batch, full=full, calls=calls):
            calls.append(batch)  # the batch of a step is put before the step
            limit_files(LIMIT if len(calls) in full else resource.RLIM_INFINITY)
            return made.put(batch)

        wanted = config(**changed, on_save_error=on_save_error)
        session.make_experiment = lambda _, wanted=wanted, put=put: dataclasses.replace(
            made, config=wanted, put=put
        )
        try:
            outcomes[name] = run.train(wanted, folder / name)
        except OSError as error:
            outcomes[name] = f"{type(error).__name__}: {error}"
        limit_files(resource.RLIM_INFINITY)
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
