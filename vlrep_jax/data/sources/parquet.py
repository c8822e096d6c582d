"""Rows of a Parquet file by number, a row group at a time; pyarrow is the extra `data`."""

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict

import numpy as np

from vlrep_jax.data.sources.reading import open_binary, stamp_of
from vlrep_jax.data.sources.stores import StoreError, is_remote
from vlrep_jax.data.sources.values import BadRow

# Row groups kept by a process, in bytes of their columns: as many as threads read at once.
KEPT_BYTES = 512 * 2**20


class ParquetRows:
    """A Parquet file; the footer is read at once, a row group when one of its rows is asked for.

    Attributes:
        columns: names of the columns. blocks: int64[g], rows of each row group. content: hash of
            the footer.

    Raises:
        FileNotFoundError: the file cannot be read.
        ModuleNotFoundError: pyarrow is not installed.
        ValueError: it is no Parquet file, or is cut.
    """

    def __init__(self, path: str, storage_options=None):
        self.path, self._options = path, storage_options
        arrow = _pyarrow(path)
        try:
            file, self._stamp = self._opened()
            with file:
                metadata = file.metadata
                self.columns = tuple(file.schema_arrow.names)
                groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
                self.blocks = np.asarray([group.num_rows for group in groups], np.int64)
                self.content = hashlib.sha256(repr(_facts(metadata, groups)).encode()).hexdigest()
        except (FileNotFoundError, StoreError):
            raise
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{path} is no readable Parquet file: {_line(error)}.") from error
        if (self.blocks < 0).any():
            raise ValueError(f"{path} is no readable Parquet file: it counts rows below zero.")
        self._ends = np.cumsum(self.blocks)

    def __len__(self):
        return int(self.blocks.sum())

    def holds(self, name):
        """As of the other tables: the footer names all columns."""
        return False

    def rows(self, indices, columns):
        """The rows of ascending numbers, each a mapping by column, or a BadRow."""
        found = []
        for index in indices:
            group = int(np.searchsorted(self._ends, index, side="right"))
            table = _GROUPS.get(self, group, tuple(columns))
            found.append(_row(table, index - int(self._ends[group] - self.blocks[group])))
        return found

    def group(self, number, columns):
        """A row group as an Arrow table, or the BadRow that each of its rows is.

        Raises:
            StoreError: the file's store failed three times.
        """
        arrow = _pyarrow(self.path)
        try:
            file, stamp = self._opened()
            with file:
                if stamp != self._stamp:
                    return BadRow("changed")
                table = file.read_row_group(number, columns=list(columns), use_threads=False)
            table.validate()  # damage may leave a column shorter than the others
        except FileNotFoundError:
            return BadRow("missing")
        except StoreError:
            raise
        except (arrow.ArrowException, OSError, ValueError):
            return BadRow("corrupt")
        return table if len(table) == self.blocks[number] else BadRow("corrupt")

    def _opened(self):
        """The file as Arrow reads it, and its stamp."""
        from pyarrow import parquet

        with contextlib.ExitStack() as opened:
            file = opened.enter_context(open_binary(self.path, self._options))
            stamp = stamp_of(file)
            if is_remote(self.path):
                opened.pop_all()
                return parquet.ParquetFile(file), stamp
        # Arrow's own reading of local files leaves the interpreter to the other threads.
        return parquet.ParquetFile(os.fspath(self.path)), stamp

    def fingerprint(self):
        """What tells this file from another, as a JSON value."""
        return [len(self), self.content]


class _Groups:
    """Row groups that were read last, of any file."""

    def __init__(self):
        self._kept, self._lock = OrderedDict(), threading.Lock()
        self._reading = [threading.Lock() for _ in range(64)]

    def get(self, rows, group, columns):
        """A row group as an Arrow table, or the BadRow that each of its rows is."""
        key = rows.path, rows.content, group, columns
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # One thread reads a group; the others that want it wait, and find it.
        with self._reading[hash(key) % len(self._reading)]:
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            return self._read(key, rows)

    def _read(self, key, rows):
        table = rows.group(*key[2:])
        with self._lock:
            self._kept[key] = table
            sizes = [getattr(table, "nbytes", 0) for table in self._kept.values()]
            # Windows go over the border of two: to keep one would be to read both for each batch.
            while sum(sizes) > KEPT_BYTES and len(sizes) > 2:
                self._kept.popitem(last=False)
                sizes.pop(0)
        return table


# One for the process: several sources, such as the parts of a mixture, share the bound.
_GROUPS = _Groups()


def _row(table, index):
    if isinstance(table, BadRow):
        return table
    try:
        return {name: table.column(name)[index].as_py() for name in table.column_names}
    except UnicodeDecodeError:
        return BadRow("not_utf8")
    except (ValueError, OverflowError):  # such as a date that Python has not
        return BadRow("value")


def _facts(metadata, groups):
    """What tells a file from another, in every process alike."""
    columns = [metadata.schema.column(n) for n in range(metadata.num_columns)]
    sizes = [(g.num_rows, g.total_byte_size) for g in groups]
    places = [g.column(0).file_offset for g in groups if columns]
    return [[(c.path, c.physical_type, str(c.logical_type)) for c in columns], sizes, places]


def _pyarrow(path):
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is read by the package pyarrow, which is not installed: "
            "pip install 'vlrep_jax[data]'"
        ) from error
    return pyarrow


def _line(error):
    return " ".join(str(error).split())[:300].rstrip(".")
