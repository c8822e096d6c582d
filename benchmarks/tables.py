"""How fast tables open and give rows, by kind. Run: python benchmarks/tables.py [ROWS]

Prints medians of 5: rows a second of the pass at the start, microseconds a row in batches of 256
drawn at random (Parquet: in the order of its windows), and bytes a row that stay in memory.
"""

import json
import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from vlrep_jax.data.order import order
from vlrep_jax.data.sources.files import Files

BATCH, BATCHES, REPEATS = 256, 40, 5


def write(folder, count):
    """The same rows as CSV, JSON lines and Parquet."""
    names = [f"{i // 1000:05d}/{i:09d}.jpg" for i in range(count)]
    texts = [f'picture {i}, of some words and "more" of them' for i in range(count)]
    with open(folder / "t.csv", "w") as file:
        file.write("image,caption\n")
        quoted = (text.replace('"', '""') for text in texts)
        file.writelines(f'{n},"{t}"\n' for n, t in zip(names, quoted, strict=True))
    with open(folder / "t.jsonl", "w") as file:
        rows = zip(names, texts, strict=True)
        file.writelines(json.dumps({"image": n, "caption": t}) + "\n" for n, t in rows)
    table = pa.table({"image": names, "caption": texts})
    parquet.write_table(table, folder / "t.parquet", row_group_size=10_000)


def measure(path, count):
    """(rows a second at the start, microseconds a row, bytes a row)."""
    started_s = time.perf_counter()
    source = Files(path)
    opened_s = time.perf_counter() - started_s
    stream = order(source, 0)
    batches = [[stream[b * BATCH + i] for i in range(BATCH)] for b in range(BATCHES)]
    started_s = time.perf_counter()
    for batch in batches:
        samples = source.__getitems__(batch)  # without pictures: reading stops at a missing file
        assert len(samples) == BATCH
    read_s = time.perf_counter() - started_s
    return count / opened_s, read_s / BATCH / BATCHES * 1e6, len(pickle.dumps(source)) / count


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), count)
        for kind in ("csv", "jsonl", "parquet"):
            runs = np.array([measure(Path(folder) / f"t.{kind}", count) for _ in range(REPEATS)])
            rate, row_us, held = (statistics.median(column) for column in runs.T.tolist())
            print(f"{kind:8} {rate:14,.0f} rows/s {row_us:6.1f} us/row {held:5.2f} bytes/row")


if __name__ == "__main__":
    main()
