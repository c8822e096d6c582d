"""Rows of CSV, TSV and JSON lines files by number, without holding the rows in memory.

One pass notes where every `STRIDE`th row begins; a row is then parsed when it is asked for.
"""

import csv
import io
import json
import zlib
from array import array

import numpy as np

from vlrep_jax.data.sources.reading import open_binary, stamp_of
from vlrep_jax.data.sources.stores import StoreError
from vlrep_jax.data.sources.values import BadRow, json_object

# Half a byte of memory a row; a row is found among 16 at most.
STRIDE = 16
_BLOCK = 8 * 2**20  # bytes of a request while a file is read whole
_LONGEST = 2**26  # a file without line ends would fill the memory
_BOM = b"\xef\xbb\xbf"


class TextRows:
    """What CSV and JSON lines share: blocks of rows found by their offset.

    Attributes:
        columns: names of the columns.
    """

    def __init__(self, path: str, storage_options=None):
        self.path, self._options = path, storage_options
        try:
            with open_binary(path, storage_options, _BLOCK) as file:
                self._stamp = stamp_of(file)
                self._begin = _text_begins(file, path)
                self._index(file)
        except StoreError:
            raise
        except OSError as error:
            raise FileNotFoundError(f"{path} cannot be read: {error}.") from error

    def _index(self, file):
        """Sets `_offsets`, `_size`, `_content` and what the kind of file needs."""
        self._head(file)
        offsets, count, content = array("Q"), 0, 0
        end = file.tell()
        for raw, is_row in self._records(file):
            if is_row:
                if count % STRIDE == 0:
                    offsets.append(end)
                count += 1
            end += len(raw)
            content = zlib.crc32(raw, content)
        self._offsets = np.append(np.frombuffer(offsets, np.uint64), np.uint64(end))
        self._count, self._content = count, content

    def __len__(self):
        return self._count

    def holds(self, name):
        """Whether a column that is none of `columns` is there all the same."""
        return False

    def rows(self, indices, columns):
        """The rows of ascending numbers, each a mapping by column, or a BadRow.

        Raises:
            ValueError: the file has changed since it was opened.
            OSError: it is gone, or its store failed three times.
        """
        del columns  # text has to be parsed whole
        found, block, held = [], -1, []
        with open_binary(self.path, self._options) as file:
            if stamp_of(file) != self._stamp:
                raise ValueError(f"{self.path} has changed since it was opened; start again.")
            for index in indices:
                if index // STRIDE != block:
                    block = index // STRIDE
                    held = self._block(file, block)
                found.append(self._row(held[index % STRIDE]))
        return found

    def _block(self, file, block):
        begin, end = (int(offset) for offset in self._offsets[block : block + 2])
        file.seek(begin)
        raw = file.read(end - begin)
        rows = self._split(raw)
        wanted = min(STRIDE, self._count - block * STRIDE)
        if len(raw) != end - begin or len(rows) != wanted:
            raise ValueError(f"{self.path} has changed since it was opened; start again.")
        return rows

    def _check_length(self, line):
        if len(line) == _LONGEST:
            raise ValueError(f"{self.path} has a line of {_LONGEST:,} bytes: it is no table.")

    def fingerprint(self):
        """What tells this file from another, as a JSON value."""
        return [self._count, int(self._offsets[-1]), self._content]


class CsvRows(TextRows):
    """CSV or TSV by the rules of Python's csv module: quoted fields may hold line ends.

    Args:
        path: file or URL, UTF-8.
        delimiter: between two fields; '' is a comma.
        header: names of the columns of a file that has none; () where the first row names them.
        quotes: whether a field may be quoted; else a quote is a letter as any other.
        storage_options: for fsspec.

    Raises:
        FileNotFoundError: the file cannot be read.
        ValueError: it is empty, not UTF-8 by its first bytes, or a field is longer than csv's
            limit, which an unclosed quote makes likely.
    """

    def __init__(self, path, delimiter="", header=(), quotes=True, storage_options=None):
        self._rules = {
            "delimiter": delimiter or ",",
            "quoting": csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        }
        self.columns = tuple(header)
        super().__init__(path, storage_options)

    def _head(self, file):
        end = self._begin
        for raw, is_row in () if self.columns else self._records(file):
            end += len(raw)
            if is_row:
                (self.columns,) = map(tuple, self._split(raw))
                break
        if not self.columns:
            raise ValueError(f"{self.path} is empty; expected a row of column names.")
        file.seek(end)  # the records' reader has read ahead

    def _records(self, file):
        """The bytes of each record in turn, its line end included, and whether it is a row."""
        # One character a byte, so that lengths are offsets; UTF-8 has no comma, quote or line end
        # inside its longer letters.
        held = io.TextIOWrapper(_Kept(file), encoding="latin-1", newline="")
        lines = []

        def feed():
            while line := held.readline(_LONGEST):
                self._check_length(line)
                lines.append(line)
                yield line

        records, begin = csv.reader(feed(), **self._rules), file.tell()
        while True:
            try:
                row = next(records, None)
            except csv.Error as error:
                raise ValueError(
                    f"{self.path}, the record at byte {begin} ({lines[0][:40]!r}): {error}; is a "
                    "quote left open there?"
                ) from None
            if row is None:
                return
            raw = "".join(lines).encode("latin-1")
            begin += len(raw)
            yield raw, not _blank(row)
            lines.clear()

    def _split(self, raw):
        # Bytes that are not UTF-8 survive as surrogates, as they do in file names.
        text = io.StringIO(raw.decode("utf-8", "surrogateescape"), newline="")
        return [row for row in csv.reader(text, **self._rules) if not _blank(row)]

    def _row(self, fields):
        if len(fields) != len(self.columns):
            return BadRow("columns")
        return dict(zip(self.columns, fields, strict=True))

    def fingerprint(self):
        """As of all tables, and of how fields are told apart."""
        return [*super().fingerprint(), self._rules]


class JsonRows(TextRows):
    """JSON lines: one object a line, UTF-8.

    `columns` are the keys of the first hundred rows, and those asked for that only later ones
    have. Arguments and errors as `CsvRows`.
    """

    def _head(self, file):
        pass

    def _index(self, file):
        super()._index(file)
        seen = {}
        for block in range(min(len(self._offsets) - 1, 100 // STRIDE + 1)):
            for row in map(self._row, self._block(file, block)):
                seen |= row if isinstance(row, dict) else {}
        if not seen:
            raise ValueError(f"{self.path} has no row that is a JSON object.")
        self.columns = tuple(seen)

    def holds(self, name):
        """Whether any row has this key, however late; it is a column from then on."""
        begun = name.isascii() and json.dumps(name).encode()
        with open_binary(self.path, self._options, _BLOCK) as file:
            file.seek(self._begin)
            for line, _ in self._records(file):
                if not begun or begun in line or b"\\u" in line:
                    row = self._row(line)
                    if isinstance(row, dict) and name in row:
                        self.columns += (name,)
                        return True
        return False

    def _records(self, file):
        while line := file.readline(_LONGEST):
            self._check_length(line)
            yield line, bool(line.strip())

    def _split(self, raw):
        return [line for line in io.BytesIO(raw) if line.strip()]

    def _row(self, line):
        try:
            return json_object(line)
        except BadRow as error:
            return error


def _blank(row):
    # Spaces alone: what else is white differs between the two ways a row is decoded.
    return not row or (len(row) == 1 and not row[0].strip(" \t"))


class _Kept(io.BufferedIOBase):
    """A binary file for a TextIOWrapper, which would otherwise close it."""

    def __init__(self, file):
        self._file = file

    def readable(self):
        return True

    def read1(self, size=-1):
        return self._file.read(max(size, 2**16) if size >= 0 else -1)

    read = read1


def _text_begins(file, path):
    """Offset behind a byte order mark; the file stands there."""
    start = file.read(4)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is UTF-16; save it as UTF-8.")
    if start.startswith((b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")):
        raise ValueError(f"{path} is compressed, and has no way to a row; unpack it.")
    begin = len(_BOM) if start.startswith(_BOM) else 0
    file.seek(begin)
    return begin
