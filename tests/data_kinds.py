"""A section for every way that training data may come, each of the same 48 pictures and texts."""

import fsspec
from data_files import write_parquet
from emoji_data import flat
from tars import shards

from vlrep_jax.data.preparing import write_array_record
from vlrep_jax.data.sources.sections import open_section

SIZE = 48
ALONE = (
    "folder",
    "csv",
    "jsonl",
    "parquet",
    "parquet_of_bytes",
    "tfds",
    "tar",
    "tar_window",
    "tar_lanes",
    "tar_s3",
    "csv_s3",
    "parquet_s3",
)
TOGETHER = ("subset_of_tar_lanes", "subset_of_parquet", "subset_of_tar_s3", "mixture", "mixture_s3")
KINDS = (*ALONE, *TOGETHER)


def rows(folder):
    """The rows of a table, and the pictures that they name."""
    made = []
    for number in range(SIZE):
        name = f"{number:03d}.png"
        (folder / name).write_bytes(flat(number))
        texts = [f"number {number}", f"grey {number}"]
        made.append({"image": name, "caption": texts, "id": f"id{number}"})
    return made


def sections(folder, s3):
    """Kind -> section, for each of KINDS.

    Args:
        folder: to write in.
        s3: fsspec options of a store with a bucket `bucket`.
    """
    made = rows(folder)
    texts = [row | {"caption": row["caption"][0]} for row in made]
    lines = "".join(f"{r['image']},{r['caption']},{r['id']}\n" for r in texts)
    (folder / "t.csv").write_text("image,caption,id\n" + lines)
    write_parquet(folder / "t.parquet", made, row_group_size=5)
    import json

    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    as_bytes = [r | {"image": (folder / r["image"]).read_bytes()} for r in made]
    write_parquet(folder / "bytes.parquet", as_bytes, row_group_size=7)
    photos = folder / "photos"
    photos.mkdir()
    for row in texts:
        (photos / row["image"]).write_bytes((folder / row["image"]).read_bytes())
        (photos / row["image"]).with_suffix(".txt").write_text(row["caption"])
    pattern = shards(folder / "shards", 6, 8)
    store = fsspec.filesystem("s3", **s3)
    for path in (*(folder / "shards").glob("*.tar"), *folder.glob("*.*")):
        store.pipe_file(f"bucket/{folder.name}/{path.name}", path.read_bytes())
    files = {"name": "files", "key": "id"}
    stored = files | {"storage_options": s3}
    remote = {"name": "tar", "path": f"s3://bucket/{folder.name}/*.tar", "storage_options": s3}
    alone = {
        "folder": {"name": "folder", "path": str(photos)},
        "csv": files | {"path": str(folder / "t.csv")},
        "jsonl": files | {"path": str(folder / "t.jsonl")},
        "parquet": files | {"path": str(folder / "t.parquet"), "window": 12},
        "parquet_of_bytes": files | {"path": str(folder / "bytes.parquet"), "window": 12},
        "tfds": {"name": "tfds", "path": str(folder / "prepared"), "key": "key"},
        "tar": {"name": "tar", "path": pattern},
        "tar_window": {"name": "tar", "path": pattern, "window": 10},
        "tar_lanes": {"name": "tar", "path": pattern, "window": 5, "lanes": 8},
        "tar_s3": remote | {"window": 10, "cache_dir": str(folder / "copies")},
        "csv_s3": stored | {"path": f"s3://bucket/{folder.name}/t.csv"},
        "parquet_s3": stored | {"path": f"s3://bucket/{folder.name}/t.parquet", "window": 12},
    }
    write_array_record(open_section(alone["csv"]), str(folder / "prepared"))
    split = {"name": "subset", "share": 0.3, "salt": "v1"}
    own = {"name": "random", "templates": ["a {}", "the {}"]}
    subset = split | {"source": alone["parquet"]}
    together = {
        "subset_of_tar_lanes": split | {"source": alone["tar_lanes"]},
        "subset_of_parquet": split | {"source": alone["parquet"], "part": "held_out"},
        "subset_of_tar_s3": split | {"source": alone["tar_s3"], "first": 20},
        "mixture": {
            "name": "mixture",
            "parts": {
                "web": {"source": alone["tar_window"], "weight": 0.6},
                "rows": {"source": subset, "weight": 1, "caption": own},
                "own": {"source": alone["folder"], "weight": 0.2},
            },
        },
        "mixture_s3": {
            "name": "mixture",
            "parts": {
                "web": {"source": alone["tar_s3"], "weight": 2, "caption": own},
                "own": {"source": alone["tfds"], "weight": 1},
            },
        },
    }
    return alone | together
