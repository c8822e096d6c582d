"""An index on disk, to write: pictures are added as pending, and published all at once.

Embeddings are appended and synchronised before the transaction that names them, so that a run may
be killed anywhere: bytes that no transaction names are written over by the next run.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlrep_jax.search.listing import Found
from vlrep_jax.search.store import (
    COLUMNS,
    DATABASE,
    FORMAT,
    SCHEMA,
    Picture,
    Store,
    connected,
    picture_of,
    told,
    transaction,
)

LOCK = "lock"
_SPARE = 1024  # rows of pictures that are gone, which no file is written anew for
_COPY = 4096  # rows copied at once


class Embedded(NamedTuple):
    """A picture that was read, before it has a place in an index.

    Attributes:
      found: as it was when it was read.
      digest: hash of its bytes.
      width, height: of the whole picture.
      thumbnail: JPEG; None where the index has one of this digest.
      embedding: float32[d].
    """

    found: Found
    digest: bytes
    width: int
    height: int
    thumbnail: bytes | None
    embedding: np.ndarray


class Counts(NamedTuple):
    """What became of an index's pictures."""

    added: int
    changed: int
    removed: int
    unchanged: int


class Writer(Store):
    """An index that this process alone writes."""

    def begin(self, found: Iterable[Found]) -> list[Found]:
        """Takes note of what there is now.

        Returns:
          Those of `found` that are not in the index as they are, published or pending.
        """
        with transaction(self.db):
            self.db.execute("DROP TABLE IF EXISTS temp.found")
            self.db.execute(
                "CREATE TEMP TABLE found (name BLOB PRIMARY KEY, file BLOB, place INTEGER, "
                "size INTEGER, stamp TEXT)"
            )
            self.db.executemany("INSERT INTO found VALUES (?, ?, ?, ?, ?)", map(_values, found))
            same = (
                "SELECT 1 FROM {} AS t WHERE (t.name, t.size, t.stamp) = (f.name, f.size, f.stamp)"
            )
            for table, which in (("pictures", "pending = 1 AND"), ("unreadable", "")):
                self.db.execute(
                    f"DELETE FROM {table} WHERE {which} (name, size, stamp) NOT IN "
                    "(SELECT name, size, stamp FROM found)"
                )
            rows = self.db.execute(
                f"SELECT * FROM found AS f WHERE NOT EXISTS ({same.format('pictures')}) "
                f"AND NOT EXISTS ({same.format('unreadable')}) ORDER BY name"
            ).fetchall()
        return [Found(os.fsdecode(row[0]), os.fsdecode(row[1]), *row[2:]) for row in rows]

    def digests(self) -> set[bytes]:
        """Of all pictures, pending ones too."""
        return {digest for (digest,) in self.db.execute("SELECT digest FROM pictures")}

    def same(self, digest: bytes) -> tuple[Picture, np.ndarray] | None:
        """A picture with these bytes and its embedding, float32[d]; it may be pending."""
        query = f"SELECT {COLUMNS} FROM pictures WHERE digest = ? LIMIT 1"
        row = self.db.execute(query, (digest,)).fetchone()
        if row is None:
            return None
        picture = picture_of(row)
        return picture, np.array(self.embeddings()[picture.row])

    def add(
        self,
        embedded: Sequence[Embedded],
        unreadable: Sequence[tuple[Found, str]],
        gone: Sequence[Found],
    ) -> None:
        """Adds what was made of some of `begin`'s pictures, as one piece.

        Of a published picture whose bytes are still the same only size, stamp and place are new.

        Args:
          embedded: pictures, pending from now on.
          unreadable: what is no picture, and why.
          gone: what was removed since it was found.
        """
        touched, new = [], []
        for one in embedded:
            (touched if self._digest_of(one.found) == one.digest else new).append(one)
        first = self.about["rows"]
        if new:
            self._append(first, np.stack([one.embedding for one in new]))
        with transaction(self.db):
            self.db.executemany(
                "UPDATE pictures SET name = ?1, file = ?2, place = ?3, size = ?4, stamp = ?5 "
                "WHERE pending = 0 AND name = ?1",
                [_values(one.found) for one in touched],
            )
            self.db.executemany(
                "INSERT INTO pictures (row, pending, name, file, place, size, stamp, digest, "
                "width, height) VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (row, *_values(one.found), one.digest, one.width, one.height)
                    for row, one in enumerate(new, first)
                ],
            )
            self.db.executemany(
                "INSERT OR IGNORE INTO thumbnails VALUES (?, ?)",
                [(one.digest, one.thumbnail) for one in new if one.thumbnail is not None],
            )
            self.db.executemany(
                "INSERT OR REPLACE INTO unreadable VALUES (?, ?, ?, ?)",
                [(os.fsencode(f.name), f.size, f.stamp, reason) for f, reason in unreadable],
            )
            self.db.executemany(
                "DELETE FROM found WHERE name = ?", [(os.fsencode(f.name),) for f in gone]
            )
            self._set(rows=first + len(new))

    def publish(self, images: Sequence[str]) -> Counts:
        """Makes the index what `begin` was told: from now on this is what others read."""
        old = "FROM pictures AS p WHERE pending = 0"
        is_left = "name NOT IN (SELECT name FROM found) OR name IN (SELECT name FROM unreadable)"
        is_new = "name IN (SELECT name FROM pictures WHERE pending = 1)"
        with transaction(self.db):
            before, removed, changed, pending = (
                self.db.execute(query).fetchone()[0]
                for query in (
                    f"SELECT count(*) {old}",
                    f"SELECT count(*) {old} AND ({is_left})",
                    f"SELECT count(*) {old} AND {is_new}",
                    "SELECT count(*) FROM pictures WHERE pending = 1",
                )
            )
            self.db.execute(f"DELETE {old.replace(' AS p', '')} AND ({is_left} OR {is_new})")
            self.db.execute("UPDATE pictures SET pending = 0 WHERE pending = 1")
            self.db.execute(
                "DELETE FROM thumbnails WHERE digest NOT IN (SELECT digest FROM pictures)"
            )
            self._compact()
            is_other = pending or removed or not self.about["generation"]
            generation = self.about["generation"] + bool(is_other)
            self._set(images=list(images), generation=generation)
        self.clear()
        return Counts(pending - changed, changed, removed, before - removed - changed)

    def set_graph(self, graph: dict | None) -> None:
        """Names the graph of the pictures as they are published now, or says there is none."""
        with transaction(self.db):
            self._set(graph=graph)
        self.clear()

    def clear(self) -> None:
        """Removes files that no reader will look for."""
        graph = self.about["graph"]
        kept = {self.about["embeddings"], graph["file"] if graph else ""}
        for pattern in ("embeddings-*.f32", "graph-*"):
            for path in self.path.glob(pattern):
                if path.name not in kept:
                    path.unlink()

    def _digest_of(self, found):
        """Of the published picture of this name; None where there is none."""
        query = "SELECT digest FROM pictures WHERE pending = 0 AND name = ?"
        row = self.db.execute(query, (os.fsencode(found.name),)).fetchone()
        return row and row[0]

    def _append(self, first, embeddings):
        path = self.path / self.about["embeddings"]
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        with open(descriptor, "wb") as file:
            file.seek(4 * first * self.about["width"])
            file.write(np.ascontiguousarray(embeddings, "<f4").data)
            file.flush()
            os.fsync(descriptor)

    def _compact(self):
        """Writes the embeddings anew once more rows are of pictures that are gone than not."""
        query = "SELECT id, row FROM pictures ORDER BY row"
        pairs = np.array(self.db.execute(query).fetchall(), np.int64).reshape(-1, 2)
        if self.about["rows"] - len(pairs) <= len(pairs) + _SPARE:
            return
        embeddings = self.embeddings()
        name = f"embeddings-{self.about['generation'] + 1}.f32"
        with open(self.path / name, "wb") as file:
            for start in range(0, len(pairs), _COPY):
                file.write(embeddings[pairs[start : start + _COPY, 1]].data)
            file.flush()
            os.fsync(file.fileno())
        self.db.executemany(
            "UPDATE pictures SET row = ? WHERE id = ?",
            [(row, int(id)) for row, id in enumerate(pairs[:, 0])],
        )
        self._set(embeddings=name, rows=len(pairs))

    def _set(self, **values):
        self.about |= values
        self.db.executemany(
            "UPDATE about SET value = ? WHERE name = ?",
            [(json.dumps(value), name) for name, value in values.items()],
        )


@contextmanager
def writing(path: Path, model: dict, width: int):
    """A `Writer` of an index, which is made if it is not there.

    Args:
      path: the directory.
      model: {"path", "fingerprint"} of the model that embeds its pictures.
      width: d.

    Raises:
      ValueError: another process writes it, it was made by another model, or it is damaged.
      FileExistsError: the directory holds something else.
    """
    path = Path(path)
    if path.exists() and not (path / DATABASE).exists() and not _is_ours(path):
        raise FileExistsError(f"{path} exists and is no index; name another directory.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path} cannot be made: {error.strerror}.") from None
    with open(path / LOCK, "w") as lock, told(path):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{path} is being written by another process.") from None
        connection = connected(path, "rwc")
        if not connection.execute("SELECT name FROM sqlite_master").fetchone():
            _create(connection, model, width)
        with Writer(path, connection) as writer:
            check_model(writer, model)
            writer.embeddings()  # all there, or what is appended would lie behind a hole
            writer.clear()
            yield writer


def check_model(store: Store, model: dict) -> None:
    """Raises ValueError where an index was made by another model than {"path", "fingerprint"}."""
    made_by = store.about["model"]
    if made_by["fingerprint"] != model["fingerprint"]:
        raise ValueError(
            f"{store.path} was made by another model ({made_by['path']}, "
            f"{made_by['fingerprint'][:12]}) than {model['path']} ({model['fingerprint'][:12]}); "
            "name that model, or index into another directory. Of a run that goes on, name the "
            "step: DIR@STEP."
        )


def _is_ours(path):
    """Whether a directory has nothing but what a run leaves that is killed at its very start."""
    return path.is_dir() and {p.name for p in path.iterdir()} <= {LOCK, f"{DATABASE}-journal"}


def _create(connection: sqlite3.Connection, model, width):
    about = {"format": FORMAT, "model": model, "width": width, "generation": 0, "rows": 0}
    about |= {"embeddings": "embeddings-0.f32", "images": [], "graph": None}
    with transaction(connection):
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        connection.executemany(
            "INSERT INTO about VALUES (?, ?)", [(k, json.dumps(v)) for k, v in about.items()]
        )


def _values(found: Found):
    return (os.fsencode(found.name), os.fsencode(found.file), *found[2:])
