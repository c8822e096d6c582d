"""Damaged and hostile tables. In full: `cd tests && python -m fuzz.tables 4000`.

Each case is a small table, damaged by chance, in a folder that holds pictures, links and pipes.
Reading it gives samples, each a picture of the folder or a known reason, or one ValueError or
FileNotFoundError in one line; the process lives, in bounded time and memory, and writes nothing.
"""

import csv
import io
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from emoji_data import flat
from pyarrow import parquet

from vlrep_jax.data.sources.files import Files
from vlrep_jax.data.sources.tables import CsvRows

KINDS = ("csv", "tsv", "jsonl", "parquet")
REASONS = {"", "missing", "outside", "columns", "not_utf8", "json", "not_text", "corrupt", "value"}
SECRET = b"what no table may show"
PATHS = (
    "a.png",
    "sub/b.png",
    "../secret",
    "{top}/secret",
    "link",
    "linked/secret",
    "pipe",
    "",
    ".",
)
PATHS += (
    "none.png",
    "a.png\0",
    "x" * 300,
    "~/secret",
    "file://{top}/secret",
    "sub/../a.png",
    "é.png",
)
SECONDS, MEGABYTES = 5, 400


def make_folder(top):
    """Pictures, a secret outside them, and links and pipes that lead to it or nowhere."""
    folder = top / "in"
    (folder / "sub").mkdir(parents=True)
    (top / "secret").write_bytes(SECRET)
    for number, name in enumerate(("a.png", "sub/b.png", "é.png")):
        (folder / name).write_bytes(flat(number))
    (folder / "link").symlink_to(top / "secret")
    (folder / "linked").symlink_to(top)
    os.mkfifo(folder / "pipe")
    return folder


def table_bytes(kind, top, rng):
    """A valid table with awkward names and captions."""
    words = ["cat", 'a "dog"', "x,\ny", "\r\n", "\t", "é" * 9, "z" * 3000, "", "{}", "\u2028"]
    rows = [
        {
            "image": str(rng.choice(PATHS)).format(top=top),
            "caption": " ".join(rng.choice(words, rng.integers(0, 5))),
            "id": str(i),
        }
        for i in range(int(rng.integers(1, 60)))
    ]
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=bool(rng.integers(2))) + "\n" for row in rows)
    if kind == "parquet":
        out = pa.BufferOutputStream()
        table = pa.Table.from_pylist(rows)
        compression = str(rng.choice(["none", "snappy", "zstd"]))
        parquet.write_table(table, out, row_group_size=16, compression=compression)
        return out.getvalue().to_pybytes()
    out = io.StringIO(newline="")
    ends = str(rng.choice(["\n", "\r\n"]))
    writer = csv.DictWriter(
        out, rows[0], delimiter="," if kind == "csv" else "\t", lineterminator=ends
    )
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def damaged(data, rng):
    """Bits flipped, pieces cut, repeated, swapped or put in."""
    data = bytearray(data.encode() if isinstance(data, str) else data)
    pieces = [b"\0", b'"', b"\r", b"\n", b",", b"\t", b"\xff", b"\xef\xbb\xbf", b"[" * 2000]
    pieces += [b'"' + b"y" * 200_000, b"\xff\xfe", b"1e999", b"\xc3", b"{}", b'"""', b"\x1a"]
    for _ in range(int(rng.integers(0, 6))):
        place = int(rng.integers(0, len(data) + 1))
        end = min(len(data), place + int(rng.integers(1, 200)))
        match rng.integers(0, 6):
            case 0 if data:
                data[place % len(data)] ^= 1 << int(rng.integers(8))
            case 1:
                del data[place:]
            case 2:
                del data[place:end]
            case 3:
                data[place:place] = data[place:end]
            case 4:
                data[place:end] = rng.integers(0, 256, end - place, np.uint8).tobytes()
            case _:
                data[place:place] = pieces[rng.integers(len(pieces))]
    return bytes(data)


def check(seed, folder):
    """One case; returns what became of it."""
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    quotes = bool(seed // len(KINDS) % 2)
    path = folder / f"t.{kind}"
    path.write_bytes(damaged(table_bytes(kind, folder.parent, rng), rng))
    before = sorted(os.listdir(folder)) + sorted(os.listdir(folder.parent))
    pictures = {flat(number) for number in range(3)} | {b""}
    started_s = time.process_time()  # by the clock it is the machine's other work, too
    try:
        source = Files(path, quotes=quotes)
        numbers = rng.permutation(len(source))[:200]
        held = source.__getitems__(numbers)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and len(str(error)) < 3000, f"{seed}: {error!r}"
        return "refused"
    assert time.process_time() - started_s < SECONDS, seed
    assert sorted(os.listdir(folder)) + sorted(os.listdir(folder.parent)) == before, seed
    for sample in held:
        assert sample.problem in REASONS, (seed, sample.problem)
        assert bool(sample.problem) == (not sample.image), seed
        assert sample.image in pictures and SECRET not in sample.image, seed
        assert all(isinstance(text, str) for text in sample.captions), seed
        "".join(sample.captions).encode(), sample.key.encode()
    if kind in ("csv", "tsv"):
        same_as_csv(path, "," if kind == "csv" else "\t", quotes, seed)
    return "read"


def same_as_csv(path, delimiter, quotes, seed):
    """The rows are those that the csv module finds from the beginning of the file."""
    table = CsvRows(str(path), delimiter, quotes=quotes)
    file = io.StringIO(path.read_bytes().decode("utf-8-sig", "surrogateescape"), newline="")
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    rows = [row for row in csv.reader(file, delimiter=delimiter, quoting=quoting)]
    rows = [row for row in rows if len(row) > 1 or "".join(row).strip(" \t")][1:]
    found = table.rows(range(len(table)), ())
    assert len(found) == len(rows), seed
    for one, row in zip(found, rows, strict=True):
        whole = len(row) == len(table.columns)
        assert one == dict(zip(table.columns, row, strict=True)) if whole else one.reason, seed


def run(seeds):
    """Checks cases; returns how many were read and refused."""
    counts = {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as top:
        folder = make_folder(Path(top))
        check(0, folder)
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in seeds:
            counts[check(seed, folder)] += 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun) / 1024
        assert grown < MEGABYTES, f"{grown:.0f} MB more"
    return counts


if __name__ == "__main__":
    print(run(range(int(sys.argv[1]))))
