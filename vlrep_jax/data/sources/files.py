"""Tables whose rows name or hold pictures: CSV, TSV, JSON lines, Parquet."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from vlrep_jax.data.sources.parquet import ParquetRows
from vlrep_jax.data.sources.reading import local, read_bytes
from vlrep_jax.data.sources.sample import Sample, key_hashes, picture_identity, plain
from vlrep_jax.data.sources.stores import find, is_remote
from vlrep_jax.data.sources.tables import CsvRows, JsonRows
from vlrep_jax.data.sources.values import BadRow, value_at, value_texts, word

# Ending of a file's name -> (path, storage_options, keywords of CSV) -> rows.
KINDS = {
    ".csv": lambda path, stored, csv: CsvRows(path, storage_options=stored, **csv),
    ".tsv": lambda path, stored, csv: CsvRows(
        path, storage_options=stored, **csv | {"delimiter": csv["delimiter"] or "\t"}
    ),
    ".jsonl": lambda path, stored, csv: JsonRows(path, stored),
    ".ndjson": lambda path, stored, csv: JsonRows(path, stored),
    ".parquet": lambda path, stored, csv: ParquetRows(path, stored),
}


class Files:
    """Rows of one or several tables, each a picture with its captions.

    A column is named as it stands in the table, or by a dotted path into it, such as
    `meta.title`; through a list, a path gives a list.

    Args:
        path: a file, a pattern or several of them; .csv, .tsv, .jsonl, .ndjson or .parquet, local
            or an fsspec URL.
        image: column of the picture: a path, its bytes, or Hugging Face's {"bytes", "path"}.
        captions: column of a text or a list of texts; or several columns.
        key: column that is unique; by default the file's name and the row's number.
        identity: column that rows of one picture share, or "image": the hash of the picture's
            bytes. Rows of equal identity are never each other's negatives.
        labels: label name -> column.
        root: directory or URL that paths are relative to and stay inside, links included; by
            default the table's own directory. '/' lets them lead anywhere.
        header: names of the columns of CSV and TSV files without a row of them.
        delimiter: between the fields of CSV and TSV; '' for a comma, in .tsv a tab.
        quotes: whether fields of CSV and TSV may be quoted; False where a quote is a letter.
        window: samples of Parquet files shuffled together; whole row groups are read.
        storage_options: for fsspec, such as {"endpoint_url": ...}, of tables and pictures.

    Raises:
        FileNotFoundError: a path names nothing.
        ValueError: a file is no such table, or has no such column.
        StoreError: a store failed three times, here or when samples are read.
    """

    def __init__(
        self,
        path: str | os.PathLike | Sequence[str],
        *,
        image: str = "image",
        captions: str | Sequence[str] = "caption",
        key: str = "",
        identity: str = "",
        labels: Mapping[str, str] | None = None,
        root: str = "",
        header: Sequence[str] = (),
        delimiter: str = "",
        quotes: bool = True,
        window: int = 8192,
        storage_options: Mapping | None = None,
    ):
        self._options = dict(storage_options or {})
        if root and not is_remote(root) and not os.path.isdir(local(root)):
            raise FileNotFoundError(f"root={root!r} is not a directory; paths are relative to it.")
        paths = [stored.path for stored in find(path, self._options)]
        self._image, self._key, self._identity = image, key, identity
        self._captions = (captions,) if isinstance(captions, str) else tuple(captions)
        self._labels, self._window = dict((labels or {}).items()), window
        if not (image and self._captions and all(self._captions)):
            raise ValueError(f"image={image!r} and captions={captions!r} must each name a column.")
        if window < 1:
            raise ValueError(f"window={window} must be at least 1.")
        if len(delimiter) > 1 or delimiter in ('"', "\r", "\n"):
            raise ValueError(f"delimiter={delimiter!r} must be one letter, such as ';'.")
        csv = {"delimiter": delimiter, "header": tuple(header), "quotes": quotes}
        self._tables = [_open_table(path, self._options, csv) for path in paths]
        self._names = _short_names(paths)
        self._roots = [local(root) if root else os.path.dirname(path) for path in paths]
        self._ends = np.cumsum([len(table) for table in self._tables])
        own = [] if identity == "image" else [identity]
        self._used = [c for c in (image, *self._captions, key, *own, *self._labels.values()) if c]
        for table in self._tables:
            for column in self._used:
                _find_column(table, column)

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        return [self._sample(*found) for found in self._rows(indices, self._used)]

    def _rows(self, indices, columns):
        """(file number, row number, row) of each index, read in the order they lie in."""
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"Sample {indices.max()} of {len(self)} was asked for.")
        files = np.searchsorted(self._ends, indices, side="right")
        found = [None] * len(indices)
        for number in np.unique(files):
            table = self._tables[number]
            places = np.flatnonzero(files == number)
            numbers = indices[places] - (self._ends[number] - len(table))
            turn = np.argsort(numbers, kind="stable")
            ordered = [int(n) for n in numbers[turn]]
            rows = table.rows(ordered, sorted({_find_column(table, c) for c in columns}))
            for place, row_number, row in zip(places[turn], ordered, rows, strict=True):
                found[place] = (int(number), row_number, row)
        return found

    def _sample(self, number, row_number, row):
        if isinstance(row, BadRow):
            return Sample(b"", (), self._row_key(number, row_number), {}, problem=row.reason)
        key = self._key_of(number, row_number, row)
        try:
            captions = tuple(text for c in self._captions for text in value_texts(value_at(row, c)))
            labels = {label: plain(value_at(row, c)) for label, c in self._labels.items()}
            picture = self._picture(value_at(row, self._image), self._roots[number])
        except BadRow as error:
            return Sample(b"", (), key, {}, problem=error.reason)
        if self._identity == "image":
            identity = picture_identity(picture)
        else:
            identity = word(value_at(row, self._identity)) if self._identity else ""
        return Sample(picture, captions, key, labels, identity)

    def _key_of(self, number, row_number, row):
        key = word(value_at(row, self._key)) if self._key else ""
        return key or self._row_key(number, row_number)

    def _row_key(self, number, row_number):
        return f"{self._names[number]}:{row_number}"

    def _picture(self, value, root):
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(value, str) or not value:
            raise BadRow("missing")
        return read_bytes(root, value, self._options)

    def shard_of(self, index):
        """The table that a row stands in."""
        return self._names[int(np.searchsorted(self._ends, index, side="right"))]

    def key_hashes(self):
        """uint64[n], as `sample.key_hashes`; where no column is the key, no row is read."""
        if not self._key:
            return key_hashes(
                self._row_key(number, row)
                for number, table in enumerate(self._tables)
                for row in range(len(table))
            )
        hashes = [np.zeros(0, np.uint64)]
        for start in range(0, len(self), 65536):
            found = self._rows(np.arange(start, min(start + 65536, len(self))), [self._key])
            hashes.append(
                key_hashes(
                    self._row_key(number, row_number)
                    if isinstance(row, BadRow)
                    else self._key_of(number, row_number, row)
                    for number, row_number, row in found
                )
            )
        return np.concatenate(hashes)

    def blocks(self):
        """int64[k], samples of each stretch that is read as one; none where any row is as near."""
        if not all(isinstance(table, ParquetRows) for table in self._tables):
            return np.zeros(0, np.int64)
        return np.concatenate([table.blocks for table in self._tables])

    def windows(self, blocks, seed, batch_size=1):
        """The order of what is left of each block, as of `data.order.windowed`."""
        # Here, not above: workers need no Grain, which takes a second to import.
        from vlrep_jax.data.order import windowed

        return windowed(blocks, self._window, seed, batch_size=batch_size)

    def fingerprint(self):
        """Stable hash of the tables' names and content and of what is read from them."""
        tables = [[n, t.fingerprint()] for n, t in zip(self._names, self._tables, strict=True)]
        used = [self._image, self._captions, self._key, self._identity, self._labels]
        order = self._window if len(self.blocks()) else 0
        held = json.dumps([tables, used, order], sort_keys=True)
        return hashlib.sha256(held.encode()).hexdigest()


def _open_table(path, storage_options, csv):
    kind = os.path.splitext(path)[1].lower()
    if kind not in KINDS:
        hint = "; a JSON array has to be written as one object a line" if kind == ".json" else ""
        raise ValueError(f"{path} is no table that is known by its name: {[*KINDS]}{hint}.")
    return KINDS[kind](path, storage_options, csv)


def _short_names(paths):
    """Names that tell the files apart and stay when all move together."""
    if len(paths) == 1:
        return [os.path.basename(paths[0])]
    if any(map(is_remote, paths)):
        return paths
    top = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, top) for path in paths]


def _find_column(table, path):
    """The column of a table that a dotted path begins with."""
    for name in (path, path.split(".")[0]):
        if table.columns.count(name) > 1:
            raise ValueError(f"{table.path} has several columns {name!r}; rename all but one.")
        if name in table.columns or table.holds(name):
            return name
    # A damaged table, or one of another kind, may have any names.
    columns = [name if len(name) < 60 else name[:57] + "..." for name in table.columns[:30]]
    other = "; set delimiter to what is between its fields" * (
        len(columns) == 1 and any(letter in columns[0] for letter in ";\t|")
    )
    raise ValueError(f"{table.path} has no column {path!r}; it has {columns}{other}.")
