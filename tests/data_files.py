"""Small tables, folders and pictures on disk for the tests of sources."""

import csv
import json
from pathlib import Path

import pyarrow as pa
from emoji_data import flat
from pyarrow import parquet

NAMES = ("first.png", "sub/second.png", "sub/thïrd.png")
CAPTIONS = ("one", 'two, with "quotes"\nand a line end', "drei für alle")
ROWS = [
    {"image": name, "caption": caption, "id": f"id{i}", "size": str(8 + i)}
    for i, (name, caption) in enumerate(zip(NAMES, CAPTIONS, strict=True))
]


def write_pictures(folder: Path):
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(flat(number))


def write_csv(path: Path, rows=ROWS, delimiter=",", **options):
    with open(path, "w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter, **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows=ROWS):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def write_parquet(path: Path, rows=ROWS, **options):
    parquet.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


WRITERS = {
    "csv": write_csv,
    "tsv": lambda path, rows=ROWS: write_csv(path, rows, "\t"),
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


def write_folder(folder: Path):
    """Three pictures with texts beside them."""
    write_pictures(folder)
    for name, caption in zip(NAMES, CAPTIONS, strict=True):
        (folder / name).with_suffix(".txt").write_text(caption, "utf-8")
    return folder
