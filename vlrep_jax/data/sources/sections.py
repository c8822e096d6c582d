"""Config sections of sources: opening one that stands inside another, and writing one of a path."""

import os
from collections.abc import Mapping
from pathlib import Path

from vlrep_jax.build import build, plain
from vlrep_jax.data.sources.files import KINDS
from vlrep_jax.data.sources.folder import PICTURES
from vlrep_jax.data.sources.stores import is_remote, local_path

COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")


def open_section(section: Mapping):
    """The source that a section describes.

    Args:
        section: mapping with `name`, an entry of SOURCES, and its options.

    Raises:
        ValueError: no such source, or an option that it does not take, or lacks, or of another
            type.
    """
    from vlrep_jax.data.sources import SOURCES  # which holds those that call this

    return build(SOURCES, plain(section), "source")


def source_of(path: str, **options) -> dict:
    """The section of a path as a person types it.

    Args:
        path: a TFDS directory (or one up to two levels above it), a folder of pictures, a
            directory of Parquet files or tar shards, a table, or a pattern of tables or shards; or
            a URL, which without an ending is that of a folder of pictures.
        options: of the source.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is nothing that a source reads.
    """
    name = str(path)
    ending = os.path.splitext(name)[1].lower()
    if ending in KINDS:
        return {"name": "files", "path": name, **options}
    if ending == ".tar":
        return {"name": "tar", "path": name, **options}
    if ending in COMPRESSED:
        raise ValueError(
            f"{name} is compressed, and then nothing in it can be read by its place: unpack it "
            "once; pictures are compressed already."
        )
    if is_remote(name) and not ending:
        return {"name": "folder", "path": name, **options}
    if is_remote(name):
        raise ValueError(
            f"{name}: a URL has to end in {', '.join([*KINDS, '.tar'])}, as patterns such as *.tar "
            "do, or to be that of a folder of pictures."
        )
    found = Path(local_path(name))
    if found.is_dir():
        return {**_directory(found), **options}
    if not found.exists() and not any(letter in name for letter in "*?[{"):
        raise FileNotFoundError(f"{name}: there is no such file or directory.")
    raise ValueError(
        f"{name} is nothing that a source reads: expected a prepared TFDS directory, a folder of "
        f"pictures with texts, or files in {', '.join([*KINDS, '.tar'])}."
    )


def _directory(path):
    """The section of a directory by what it holds, the surest signs first."""
    infos = [p for depth in range(3) for p in path.glob("*/" * depth + "dataset_info.json")]
    if infos:
        return {"name": "tfds", "path": str(path), "split": "train"}
    for ending, name in ((".tar", "tar"), (".parquet", "files")):
        if any(path.glob(f"*{ending}")):
            return {"name": name, "path": str(path / f"*{ending}")}
    for folder, below, names in os.walk(path):
        below.sort()
        if any(name.lower().endswith(PICTURES) for name in names):
            if any(name.endswith((".txt", ".json")) for name in names):
                return {"name": "folder", "path": str(path)}
            tables = [name for name in sorted(names) if os.path.splitext(name)[1] in KINDS]
            if tables:
                raise ValueError(
                    f"{path} holds pictures and the table {tables[0]}; name the table, "
                    f"{os.path.join(folder, tables[0])}."
                )
    listing = sorted(p.name for p in path.iterdir())[:10]
    raise ValueError(
        f"{path} holds no TFDS data set, tar shards, Parquet files or pictures with texts beside "
        f"them. It has: {listing}"
    )
