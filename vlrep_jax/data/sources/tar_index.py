"""The index of a set of tar shards: one file of fixed rows, made once and mapped into memory.

The file holds a preamble of 64 bytes, ROW[n] (36 bytes a sample), and a JSON text about the
shards. It is written aside and renamed, so whatever stands at its path is complete.
"""

import glob
import hashlib
import json
import logging
import os
import struct
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlrep_jax.data.sources.claims import abandoned, claim, hold, remove
from vlrep_jax.data.sources.stores import Remote, is_remote, local_path
from vlrep_jax.data.sources.tar_walk import ROW, walk, walked

_LOG = logging.getLogger(__name__)
_MAGIC, _VERSION = b"VLRTARIX", 1
# magic, version, crc of the text, samples, bytes of the text, crc of the rows, crc of these
_PREAMBLE = struct.Struct("<8sIIQQII")
_ROWS_AT = 64
# Beyond this, at 7 million samples, reading all rows would make every start slow. A damaged row
# is still found when its sample is read: the name in the shard does not have the row's hash.
_CHECKED_BYTES = 256 << 20
_REMOTE_BLOCK = 1 << 20
_REMOTE_WORKERS = 16
_SAID_S = 10.0


class Shard(NamedTuple):
    """One shard: `Stored`, and the name that begins its keys."""

    path: str
    size: int
    stamp: str
    name: str


class Index:
    """An index file, mapped.

    Args:
        path: of the file.
        checked_bytes: rows of more bytes are not read to compare their checksum.

    Attributes:
        path: of the file.
        digest: of its contents; another build has another.
        rows_crc: checksum of the rows; the same shards have the same whenever they are indexed.
        rows: ROW[n].
        first: int64[s + 1], the number of each shard's first sample, and n.
        shards: list of (name, size, stamp, samples, skipped).
        layout: the Layout that it was made for, as a list.

    Raises:
        ValueError, OSError: there is no such file, or it is cut, damaged or of another version.
    """

    def __init__(self, path, *, checked_bytes=_CHECKED_BYTES):
        self.path = str(path)
        with open(path, "rb") as file:
            head = file.read(_PREAMBLE.size)
            if len(head) < _PREAMBLE.size:
                raise ValueError(f"{path} is cut.")
            magic, version, text_crc, count, text_bytes, rows_crc, crc = _PREAMBLE.unpack(head)
            if magic != _MAGIC or version != _VERSION or zlib.crc32(head[:-4]) != crc:
                raise ValueError(f"{path} is not an index of version {_VERSION}.")
            rows_end = _ROWS_AT + count * ROW.itemsize
            if os.fstat(file.fileno()).st_size != rows_end + text_bytes:
                raise ValueError(f"{path} is cut.")
            file.seek(rows_end)
            text = file.read(text_bytes)
            if zlib.crc32(text) != text_crc:
                raise ValueError(f"{path} is damaged.")
            # The descriptor closes; the map lives on, also when the file is replaced.
            self.rows = np.memmap(file, ROW, "r", _ROWS_AT, (count,)) if count else np.empty(0, ROW)
        if self.rows.nbytes <= checked_bytes and zlib.crc32(self.rows.data) != rows_crc:
            raise ValueError(f"{path} is damaged.")
        self.digest, self.rows_crc = hashlib.sha256(head).hexdigest(), rows_crc
        about = json.loads(text)
        self.layout, self.shards = about["layout"], about["shards"]
        counts = [samples for _, _, _, samples, _ in self.shards]
        self.first = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])

    def skipped(self):
        """How many samples or members were left out of all shards, by reason."""
        total = {}
        for *_, skipped in self.shards:
            for reason, count in skipped.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def fits(self, shards, layout):
        """Whether the index is of exactly these shards as they are now."""
        listed = [[shard.name, shard.size, shard.stamp] for shard in shards]
        own = [shard[:3] for shard in self.shards]
        return own == listed and self.layout == json.loads(json.dumps(layout))


def named(files):
    """Shards from a list of Stored: each is named by its path below the folder common to all.

    Returns:
        The folder (a URL for a store), and a list of Shard.
    """
    common = files[0].path.rpartition("/")[0]
    while any(not file.path.startswith(common + "/") for file in files):
        common = common.rpartition("/")[0]
    shards = []
    for file in files:
        name = file.path[len(common) + 1 :].encode("utf-8", "surrogateescape")
        shards.append(Shard(*file, name.decode("utf-8", "backslashreplace")))
    return common or "/", shards


def index_path(folder, patterns, layout, index_dir=""):
    """Where the index of such shards stands, or is to stand.

    Beside local shards where that folder can be written, else in the user's cache folder.
    """
    patterns = [
        os.fspath(p) if is_remote(os.fspath(p)) else local_path(os.fspath(p)) for p in patterns
    ]
    own = hashlib.sha256(json.dumps([folder, patterns, layout]).encode()).hexdigest()[:16]
    # Beside the shards the name does not depend on where they lie: they may be moved as a whole.
    moved = [p.removeprefix(folder.rstrip("/") + "/") for p in patterns]
    beside = hashlib.sha256(json.dumps([moved, layout]).encode()).hexdigest()[:16]
    if index_dir:
        return Path(index_dir).expanduser().absolute() / f"vlrep-{own}.tarindex"
    if not is_remote(folder):
        path = Path(folder) / f".vlrep-{beside}.tarindex"
        if path.exists() or os.access(folder, os.W_OK | os.X_OK):
            return path
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    path = Path(cache) / "vlrep" / f"vlrep-{own}.tarindex"
    _LOG.info("%s cannot hold its index; it is kept in %s", folder, path)
    return path


def open_index(path, shards, layout, *, num_workers=0, storage_options=None):
    """The index of shards: read from `path` where it fits, else made there by one process.

    Args:
        path: of the file; its folder is made if needed.
        shards: list of Shard, as they are now.
        layout: tar_walk.Layout.
        num_workers: processes that walk over headers; 0 for one a core.
        storage_options: for shards in a store.

    Raises:
        ValueError: a shard is compressed.
        OSError: a shard cannot be read, or the index cannot be written.
    """
    path = Path(path)
    found = _loaded(path, shards, layout)
    if found is not None:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)

    def is_done():
        return path.exists() and _loaded(path, shards, layout, quiet=True) is not None

    # The first look above may have cost a second; so may the last one inside.
    with claim(path.with_suffix(".claim"), is_done, f"indexes {len(shards)} shards") as mine:
        if mine:
            _build(path, shards, layout, num_workers, storage_options)
    return Index(path)


def _loaded(path, shards, layout, quiet=False):
    """The index at `path` if it is sound and of these shards, else None."""
    try:
        index = Index(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        if not quiet:
            _LOG.warning("the index is made again: %s", error)
        return None
    return index if index.fits(shards, layout) else None


def _build(path, shards, layout, num_workers, storage_options):
    """Writes the index; rows of shards that an old one has as they are now are taken from it."""
    started_s = said_s = time.monotonic()
    known, old = {}, None
    try:
        old = Index(path, checked_bytes=float("inf"))
        if old.layout == json.loads(json.dumps(layout)):
            for number, (name, size, stamp, _, skipped) in enumerate(old.shards):
                known[name, size, stamp] = number, skipped
    except (OSError, ValueError, KeyError):
        pass
    fresh = [shard for shard in shards if (shard.name, shard.size, shard.stamp) not in known]
    _LOG.info("indexing %d of %d shards into %s ...", len(fresh), len(shards), path)
    walks = _walks(fresh, layout, num_workers, storage_options)
    about, count, crc = [], 0, 0
    for left in abandoned(path.parent.glob(f"{glob.escape(path.name)}.*.part")):
        remove(left)  # of a process that was killed
    descriptor, aside = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            hold(descriptor)
            file.write(bytes(_ROWS_AT))
            for shard in shards:
                held = known.get((shard.name, shard.size, shard.stamp))
                if held is None:
                    rows, skipped = next(walks)
                else:
                    number, skipped = held
                    rows = old.rows[old.first[number] : old.first[number + 1]]
                data = rows.tobytes()
                file.write(data)
                crc, count = zlib.crc32(data, crc), count + len(rows)
                about.append([shard.name, shard.size, shard.stamp, len(rows), skipped])
                if time.monotonic() - said_s > _SAID_S:
                    said_s = time.monotonic()
                    _LOG.info("indexed %d of %d shards", len(about), len(shards))
            text = json.dumps({"layout": layout, "shards": about}).encode()
            file.write(text)
            file.seek(0)
            head = _PREAMBLE.pack(_MAGIC, _VERSION, zlib.crc32(text), count, len(text), crc, 0)
            file.write(head[:-4] + struct.pack("<I", zlib.crc32(head[:-4])))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)  # made for its owner alone, but other users' runs may share it
        os.replace(aside, path)
    finally:
        walks.close()
        remove(aside)
    _LOG.info("indexed %d samples in %.1f s", count, time.monotonic() - started_s)


def _walks(shards, layout, num_workers, storage_options):
    """(rows, skipped) of each shard, in order; local and remote ones may be mixed."""
    local = walked([(s.path, s.name) for s in shards if not is_remote(s.path)], layout, num_workers)
    # Waiting for a store is no work for a core: threads do.
    pool = ThreadPoolExecutor(_REMOTE_WORKERS, thread_name_prefix="tar-index")

    def walk_remote(shard):
        read = Remote(shard.path, storage_options).reader(shard.size)
        return walk(read, shard.size, shard.name, layout, least=_REMOTE_BLOCK, most=_REMOTE_BLOCK)

    remote = pool.map(walk_remote, [shard for shard in shards if is_remote(shard.path)])
    try:
        for shard in shards:
            yield next(remote if is_remote(shard.path) else local)
    finally:
        local.close()
        pool.shutdown(wait=True, cancel_futures=True)
