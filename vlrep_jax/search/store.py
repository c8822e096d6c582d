"""An index on disk, to read: a database of pictures and thumbnails beside a file of embeddings.

INDEX/index.sqlite knows every picture; INDEX/embeddings-N.f32 holds rows of float32 and only ever
grows. What a run adds is pending until all of it is there; one transaction then makes it the
index, so that whoever reads sees the old pictures or the new ones. `writer.py` does that.
"""

import json
import os
import sqlite3
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlrep_jax.search.listing import Found

FORMAT = "vlrep index 1"
DATABASE = "index.sqlite"
SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    row INTEGER NOT NULL,
    pending INTEGER NOT NULL,
    name BLOB NOT NULL, file BLOB NOT NULL, place INTEGER, size INTEGER NOT NULL,
    stamp TEXT NOT NULL, digest BLOB NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL,
    UNIQUE (pending, name)
);
CREATE INDEX by_row ON pictures (pending, row);
CREATE INDEX by_digest ON pictures (digest);
CREATE TABLE thumbnails (digest BLOB PRIMARY KEY, jpeg BLOB NOT NULL);
CREATE TABLE unreadable (
    name BLOB PRIMARY KEY, size INTEGER NOT NULL, stamp TEXT NOT NULL, reason TEXT NOT NULL
)
"""
_AT_ONCE = 500  # ids of one query; SQLite bounds them
COLUMNS = "id, row, name, file, place, size, stamp, digest, width, height"


class Picture(NamedTuple):
    """A picture of an index.

    Attributes:
      id: stays as long as the picture does, and is never given to another.
      row: of the embeddings.
      found: its name, and where its bytes lie.
      digest: hash of its bytes.
      width, height: of the whole picture, turned upright.
    """

    id: int
    row: int
    found: Found
    digest: bytes
    width: int
    height: int


class Snapshot(NamedTuple):
    """All published pictures at one moment.

    Attributes:
      embeddings: float32[rows, d], mapped from the file; pictures that are gone have rows too.
      ids, rows: int64[n] of each picture, rows ascending: the order of the index.
    """

    embeddings: np.ndarray
    ids: np.ndarray
    rows: np.ndarray


class Store:
    """An open index; only the thread that opened it may use it.

    Attributes:
      path: the directory.
      about: `model` (its path and fingerprint), `width` (d), `images` (the patterns), `generation`
        (how often it was published, 0 for never), `embeddings` (name of that file), `rows` (that
        it holds), `graph` (see `approximate`).
    """

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path, self.db = path, connection
        self.about = self._about()

    def _about(self):
        rows = self.db.execute("SELECT name, value FROM about")
        about = {name: json.loads(value) for name, value in rows}
        if about.get("format") != FORMAT:
            raise ValueError(
                f"{self.path} is of another version ({about.get('format')!r}, not {FORMAT!r}): "
                "make the index again, in another directory."
            )
        return about

    def close(self) -> None:
        self.db.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def snapshot(self) -> Snapshot:
        """The pictures as they are now."""
        with transaction(self.db, "DEFERRED"):  # no file of embeddings goes while this reads
            self.about = self._about()
            query = "SELECT id, row FROM pictures WHERE pending = 0 ORDER BY row"
            pairs = np.array(self.db.execute(query).fetchall(), np.int64).reshape(-1, 2)
            return Snapshot(self.embeddings(), *np.ascontiguousarray(pairs.T))

    def embeddings(self) -> np.ndarray:
        """float32[rows, d], mapped from the file."""
        shape = (self.about["rows"], self.about["width"])
        path = self.path / self.about["embeddings"]
        if not shape[0]:
            return np.zeros(shape, np.float32)
        if not path.is_file() or path.stat().st_size < 4 * shape[0] * shape[1]:
            raise ValueError(f"{path} is gone or cut: make the index again, in another directory.")
        return np.memmap(path, "<f4", "r", shape=shape)

    def pictures(self, ids: Sequence[int]) -> dict[int, Picture]:
        """{id: picture} of those that are there."""
        found = {}
        for start in range(0, len(ids), _AT_ONCE):
            part = [int(id) for id in ids[start : start + _AT_ONCE]]
            marks = ", ".join("?" * len(part))
            query = f"SELECT {COLUMNS} FROM pictures WHERE pending = 0 AND id IN ({marks})"
            found.update((row[0], picture_of(row)) for row in self.db.execute(query, part))
        return found

    def thumbnail(self, digest: bytes) -> bytes:
        """JPEG of the pictures with this digest.

        Raises:
          KeyError: there is none.
        """
        query = "SELECT jpeg FROM thumbnails WHERE digest = ?"
        found = self.db.execute(query, (digest,)).fetchone()
        if found is None:
            raise KeyError(digest.hex())
        return found[0]

    def ends(self) -> tuple[str, str]:
        """The first and the last name of all published pictures; '' where there is none."""
        query = "SELECT min(name), max(name) FROM pictures WHERE pending = 0"
        first, last = self.db.execute(query).fetchone()
        return os.fsdecode(first or b""), os.fsdecode(last or b"")

    def unreadable(self) -> list[tuple[str, str]]:
        """(name, reason) of what was found and is no picture, sorted by name."""
        rows = self.db.execute("SELECT name, reason FROM unreadable ORDER BY name")
        return [(os.fsdecode(name), reason) for name, reason in rows]


def reading(path: str | Path) -> Store:
    """An index that was published, to read.

    Raises:
      FileNotFoundError: there is no index.
      ValueError: it is damaged, of another version, or was never finished.
    """
    path = Path(path)
    if not (path / DATABASE).is_file():
        raise FileNotFoundError(
            f"{path}: there is no index; make one: "
            f"vlrep index --model=MODEL --images=DIR --out={path}"
        )
    with told(path):
        store = Store(path, connected(path, "rw"))  # it rolls back what a killed writer left
    if not store.about["generation"]:
        store.close()
        raise ValueError(f"{path} is not finished: run its `vlrep index` again, which continues.")
    return store


def picture_of(row) -> Picture:
    """A row of COLUMNS as a `Picture`."""
    id, number, name, file, place, size, stamp, digest, width, height = row
    found = Found(os.fsdecode(name), os.fsdecode(file), place, size, stamp)
    return Picture(id, number, found, digest, width, height)


def connected(path: Path, mode: str) -> sqlite3.Connection:
    """A connection to the database of an index; transactions are the caller's."""
    uri = f"{(path / DATABASE).absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE"):
    """All of what the block does to a database, or nothing."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def told(path: Path):
    """Errors of the database as those that a user understands."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"{path}: {error}. Is there space, and permission?") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} is damaged ({error}): make it again elsewhere.") from error
