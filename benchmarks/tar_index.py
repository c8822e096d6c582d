"""How fast tar shards are indexed, opened and resumed; needs a few GB of disk for the samples.

    python benchmarks/tar_index.py

Makes 1,000 shards of 1,000 small samples (a PNG and a text each) in a temporary folder. Prints
medians of 5. The files lie in the page cache, so what is measured is the work, not the disk.
"""

import argparse
import io
import json
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vlrep_jax.data.caption_choice import CAPTIONS
from vlrep_jax.data.pipeline import train_batches
from vlrep_jax.data.sources.tar import Tar
from vlrep_jax.data.sources.tar_walk import ROW, Layout, walk_file
from vlrep_jax.data.tokenizers import train_bpe
from vlrep_jax.data.transforms import TRANSFORMS

OPEN = """
import time
started = time.perf_counter()
from vlrep_jax.data.sources.tar import Tar
imported = time.perf_counter()
source = Tar({path!r}, window={window})
first = source[len(source) // 2]
opened = time.perf_counter()
assert first.image and not first.problem
print(imported - started, opened - imported)
"""


def make(folder, shards, samples):
    """Shards of `samples` each: a 16 x 16 picture and a caption."""
    out = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(out, "PNG")
    picture = out.getvalue()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * samples, (shard + 1) * samples):
                for extension, data in (("png", picture), ("txt", b"number %d" % number)):
                    info = tarfile.TarInfo(f"{number:09d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def median_s(work, turns, clock=time.perf_counter):
    """Median of the seconds that `work` takes."""
    seconds = []
    for _ in range(turns):
        started = clock()
        work()
        seconds.append(clock() - started)
    return statistics.median(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000, help="of a shard")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--window", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vlrep_tars_") as name:
        folder = Path(name)
        make(folder, args.shards, args.samples)
        count = args.shards * args.samples
        layout = Layout(("png",), "txt", False)
        paths = sorted(folder.glob("*.tar"))[: max(1, 50_000 // args.samples)]

        def walk_some():
            found = sum(len(walk_file(path, path.name, layout)[0]) for path in paths)
            assert found == len(paths) * args.samples

        walked = len(paths) * args.samples
        rate = walked / median_s(walk_some, args.turns)
        rate_of_core = walked / median_s(walk_some, args.turns, time.process_time)
        pattern = str(folder / f"{{00000..{args.shards - 1:05d}}}.tar")
        indexes = folder / "index"

        def build():
            for path in indexes.glob("*"):
                path.unlink()
            assert len(Tar(pattern, index_dir=str(indexes))) == count

        built_s = median_s(build, args.turns)
        Tar(pattern, window=args.window)  # beside the shards
        (index,) = folder.glob(".*.tarindex")
        runs = []
        for _ in range(args.turns):
            code = OPEN.format(path=pattern, window=args.window)
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
            runs.append([float(word) for word in done.stdout.split()])
        imports_s, opened_s = (statistics.median(column) for column in zip(*runs, strict=True))
        source = Tar(pattern, window=args.window)
        rng = np.random.default_rng(0)
        chosen = [rng.integers(count, size=256) for _ in range(40)]
        read_s = median_s(lambda: [source.__getitems__(some) for some in chosen], args.turns)
        tokenizer = train_bpe(["number 0123456789"], 270)

        def resume():
            batches = train_batches(
                source,
                transform=partial(TRANSFORMS["squash"], size=16),
                caption=CAPTIONS["first"],
                tokenizer=tokenizer,
                context_length=16,
                batch_size=250,
                seed=0,
            )
            batches.restore(batches.state() | {"next_batch": 10**6 // 250})
            next(batches)
            batches.close()

        resumed_s = median_s(resume, args.turns)
        lines = {
            "headers walked, one process, samples/s": f"{rate:,.0f}",
            "the same by CPU time, samples/s a core": f"{rate_of_core:,.0f}",
            f"index of {count:,} samples made, s": f"{built_s:.2f}",
            "index, bytes a sample": f"{index.stat().st_size / count:.2f} ({ROW.itemsize} a row)",
            "start in a fresh process, index there, s": f"{opened_s:.3f}",
            "imports before it, s": f"{imports_s:.3f}",
            "random samples read/s, one thread": f"{40 * 256 / read_s:,.0f}",
            "resume at sample 10^6 and its first batch of 250, s": f"{resumed_s:.3f}",
        }
    about = {"shards": args.shards, "samples": args.samples, "turns": args.turns}
    print(f"{json.dumps(about)}, Python {platform.python_version()}, {platform.machine()}\n")
    print("| | median |\n|---|---|")
    for what, value in lines.items():
        print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
