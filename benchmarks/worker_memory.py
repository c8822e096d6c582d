"""Memory of a data worker over 100,000 samples.

    pip install -e '.[data]'
    python benchmarks/worker_memory.py [--samples=100000] [--decoder=opencv|pillow]

One worker process makes batches of 64 augmented 224x224 from a tar of 512 JPEG of 640x427 (those of
`data_loading.py`), seen again and again, and is asked ten times how much it holds. Prints a table
in Markdown. The last column is what is the worker's alone: without code and what it shares, such as
the tar's index and the batches themselves.
"""

import argparse
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path

from data_loading import BATCH, SIZE, make_tar

from vlrep_jax.data.caption_choice import CAPTIONS
from vlrep_jax.data.pipeline import train_batches
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.data.tokenizers import TOKENIZERS
from vlrep_jax.data.transforms import TRANSFORMS
from vlrep_jax.data_tools.bench import children, resident_mib

POINTS = 10


def private_mib(pid):
    """Memory that no other process has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--decoder", default="opencv")
    args = parser.parse_args()
    batches_a_point = -(-args.samples // (POINTS * BATCH))
    with tempfile.TemporaryDirectory() as folder:
        tar = str(Path(folder) / "pictures.tar")
        make_tar(tar)
        batches = train_batches(
            SOURCES["tar"](tar),
            transform=partial(TRANSFORMS["random_crop"], size=SIZE),
            caption=CAPTIONS["random"],
            tokenizer=TOKENIZERS["clip"](),
            context_length=77,
            batch_size=BATCH,
            seed=0,
            decoder=args.decoder,
            num_workers=1,
        )
        print(batches.summary, "\n")
        print("| samples | seconds | resident MiB | its own MiB |\n|---|---|---|---|")
        began = time.monotonic()
        with closing(batches):
            for point in range(POINTS):
                for _ in range(batches_a_point):
                    assert not next(batches)["bad"].any()
                (worker,) = children()
                done = (point + 1) * batches_a_point * BATCH
                seconds, held = time.monotonic() - began, resident_mib(worker)
                print(
                    f"| {done:,} | {seconds:.0f} | {held:.1f} | {private_mib(worker):.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
