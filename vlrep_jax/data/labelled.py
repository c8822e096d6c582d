"""Data sets to evaluate on: pictures with a class, with captions, or both, in up to three splits.

Read from folders of classes, tables, Karpathy's JSON files and prepared TFDS data sets. Nothing is
decoded here.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlrep_jax.data.class_files import in_order
from vlrep_jax.data.sources.folder import PICTURES
from vlrep_jax.data.sources.pictures import Pictures
from vlrep_jax.data.sources.sample import Sample
from vlrep_jax.data.sources.tables import CsvRows
from vlrep_jax.data.sources.tfds import Tfds, directory_of, feature_at, feature_paths
from vlrep_jax.data.sources.values import BadRow

TFDS = "tfds:"
# What data sets call their splits -> what they are.
_ROLES = {"train": "train", "restval": "train", "test": "test"}
_ROLES |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
_PATHS, _LABELS, _CAPTIONS = ("path", "image"), ("label",), ("caption", "captions")


class Split(NamedTuple):
    """Pictures and what is known of them.

    Attributes:
      source: n samples.
      labels: int32[n], numbers of classes; -1 for a picture without one.
      captions: m texts.
      image_of_caption: int32[m].
    """

    source: Sequence[Sample]
    labels: np.ndarray
    captions: list[str]
    image_of_caption: np.ndarray


class LabelledSet(NamedTuple):
    """A data set.

    Attributes:
      name: as it was asked for.
      classes: c labels in the data set's order; () where it has none.
      splits: of `train`, `val` and `test` those that there are; `test` always is.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]


def open_labelled(what: str | os.PathLike, *, label="", captions="", data_dir="") -> LabelledSet:
    """Opens a data set.

    Splits are train, val (or validation) and test. Without a test split, val is it; what has no
    splits at all, or one alone, is all test.

    Args:
      what: a directory with a folder of pictures a class, or with train/, val/ and test/ that hold
        such folders; a .csv or .tsv with the columns `path` (from the file's own directory),
        `label`, `caption` and `split` (the first and one of the next two are needed; rows of one
        path are one picture with several captions); a .json as of Karpathy's splits of COCO and
        Flickr (`images`: filepath, filename, split, sentences); the directory of a prepared TFDS
        data set, or `tfds:NAME`.
      label, captions: column or feature, where it is not called `label`, and `caption` or
        `captions`.
      data_dir: of `tfds:NAME`, see `Tfds`.

    Raises:
      FileNotFoundError: there is no such data set.
      ValueError: it holds no picture, or is not what it should be.
    """
    what = os.fspath(what)
    path = Path(what)
    if what.startswith(TFDS):
        directory = directory_of(dataset=what.removeprefix(TFDS), data_dir=data_dir)
        classes, splits = _tfds(directory, label, captions)
    elif path.is_dir() and _has_tfds(path):
        classes, splits = _tfds(directory_of(path), label, captions)
    elif path.is_dir():
        if label or captions:
            raise ValueError(f"{what} is a folder of classes: it has no column {label or captions}")
        classes, splits = _folder(path)
    elif not path.exists():
        raise FileNotFoundError(
            f"{what}: there is no such directory or file; a TFDS data set is named tfds:NAME."
        )
    elif path.suffix.lower() in (".csv", ".tsv"):
        classes, splits = _table(path, label, captions)
    elif path.suffix.lower() == ".json":
        classes, splits = _karpathy(path)
    else:
        raise ValueError(f"{what} is no data set: expected a directory, .csv, .tsv or .json.")
    splits = {name: split for name, split in splits.items() if len(split.source)}
    if not splits:
        raise ValueError(f"{what} holds no picture ({', '.join(PICTURES)}).")
    if "test" not in splits:
        only = "val" if "val" in splits else "train"
        splits = {"test": splits[only]} | {k: v for k, v in splits.items() if k != only}
    return LabelledSet(what, classes, splits)


def _folder(top):
    """Class folders, in split folders where all folders are such."""
    below = _folders(top)
    if below and all(name.lower() in _ROLES for name in below):
        roles = {name: _ROLES[name.lower()] for name in below}
        double = [role for role, count in Counter(roles.values()).items() if count > 1]
        if double:
            raise ValueError(f"{top} has several folders that are {double[0]}: {', '.join(below)}.")
        tops = {role: top / name for name, role in roles.items()}
    else:
        tops = {"test": top}
    classes = tuple(in_order(name for one in tops.values() for name in _folders(one)))
    if not classes:
        raise ValueError(f"{top} holds no folder of a class; expected {top}/CLASS/*.png.")
    splits = {}
    for role, one in tops.items():
        found = [(path, i) for i, name in enumerate(classes) for path in _pictures(one / name)]
        splits[role] = _split([path for path, _ in found], [i for _, i in found])
    return classes, splits


def _folders(path):
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(folder):
    found = []
    for at, folders, names in os.walk(folder):
        folders.sort()
        found += [
            os.path.join(at, name)
            for name in sorted(names)
            if not name.startswith(".") and name.lower().endswith(PICTURES)
        ]
    return found


def _split(paths, labels, captions=None):
    """Of picture files; captions is a list of texts of each."""
    captions = captions or [[]] * len(paths)
    owners = np.repeat(np.arange(len(paths), dtype=np.int32), [len(own) for own in captions])
    texts = [text for own in captions for text in own]
    return Split(Pictures(paths), np.asarray(labels, np.int32), texts, owners)


def _table(path, label, captions):
    rows = CsvRows(str(path), "\t" if path.suffix.lower() == ".tsv" else "")
    of = lambda name, usual: _chosen(path, rows.columns, name, usual)  # noqa: E731
    picture, label, caption = of("", _PATHS), of(label, _LABELS), of(captions, _CAPTIONS)
    if not picture or not (label or caption):
        raise ValueError(
            f"{path} has the columns {', '.join(rows.columns)}; expected path, and label or "
            "caption."
        )
    found = {}
    for number, row in enumerate(rows.rows(range(len(rows)), rows.columns)):
        where = f"{path}, row {number + 1}"
        if isinstance(row, BadRow):
            raise ValueError(f"{where} has not as many fields as there are columns.")
        one = {"path": row[picture], "label": row[label] if label else ""}
        one["captions"] = [row[caption]] if caption and row[caption].strip() else []
        _add(found, one, row.get("split") or "test", where)
    return _grouped(found, path.parent)


def _chosen(path, columns, name, usual):
    """The column of that name, or the first of the usual ones; '' where there is none of them."""
    if name and name not in columns:
        raise ValueError(f"{path} has no column {name!r}; it has {', '.join(columns)}.")
    return name or next((one for one in usual if one in columns), "")


def _karpathy(path):
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["images"]
        found = {}
        for number, row in enumerate(rows):
            place = os.path.join(row.get("filepath", ""), row["filename"])
            texts = [sentence["raw"] for sentence in row["sentences"]]
            one = {"path": place, "label": "", "captions": texts}
            _add(found, one, row["split"], f"{path}, image {number}")
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not as Karpathy's files are ({type(error).__name__}: {error}); expected "
            "`images` with filename, split and sentences (raw) each."
        ) from None
    return _grouped(found, path.parent)


def _add(found, one, split, where):
    """Adds what a row says of a picture to {role: {path: what is known of it}}."""
    if split not in _ROLES:
        raise ValueError(f"{where} has split={split!r}; known: {', '.join(_ROLES)}.")
    if not one["path"]:
        raise ValueError(f"{where} names no picture.")
    known = found.setdefault(_ROLES[split], {}).setdefault(one["path"], one | {"captions": []})
    if known["label"] != one["label"]:
        raise ValueError(
            f"{where}: {one['path']} is labelled {one['label']!r}, and before {known['label']!r}."
        )
    known["captions"] += one["captions"]


def _grouped(found, root):
    labels = {one["label"] for role in found.values() for one in role.values()} - {""}
    classes = tuple(in_order(labels))
    numbers = {label: number for number, label in enumerate(classes)} | {"": -1}
    splits = {}
    for role, pictures in found.items():
        known = pictures.values()
        splits[role] = _split(
            [os.path.join(root, path) for path in pictures],
            [numbers[one["label"]] for one in known],
            [one["captions"] for one in known],
        )
    return classes, splits


def _has_tfds(path):
    return any(any(path.glob(f"{'*/' * depth}dataset_info.json")) for depth in range(3))


def _tfds(directory, label, captions):
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(directory).info
    known = feature_paths(info.features)
    label = _chosen(directory, known, label, _LABELS)
    captions = _chosen(directory, known, captions, ("captions.text", *_CAPTIONS))
    if not label and not captions:
        raise ValueError(f"{directory} has no feature label and no captions; say which are.")
    roles = {_ROLES[name]: name for name in info.splits if name in _ROLES}
    if not roles:
        raise ValueError(f"{directory} has the splits {', '.join(info.splits)}; none is known.")
    labels = {"label": label} if label else {}
    names = getattr(feature_at(info.features, label), "names", None) if label else None
    read = {}
    for role, name in roles.items():
        source = Tfds(directory, name, captions=captions, labels=labels)
        read[role] = source, *_known(source)
    values = {value for _, _, held, _ in read.values() for value in held} - {None}
    classes = tuple(names or map(str, in_order(values)))
    numbers = {(i if names else name): i for i, name in enumerate(classes)}
    splits = {}
    for role, (source, texts, held, owners) in read.items():
        numbered = [numbers.get(one if names else str(one), -1) for one in held]
        splits[role] = Split(source, np.asarray(numbered, np.int32), texts, owners)
    return classes, splits


def _known(source):
    """Captions, labels (None where there is none) and image_of_caption of all samples."""
    texts, labels, owners = [], [], []
    for start in range(0, len(source), 1024):
        part = range(start, min(start + 1024, len(source)))
        for index, sample in zip(part, source.__getitems__(part), strict=True):
            labels.append(sample.labels.get("label"))
            texts += sample.captions
            owners += [index] * len(sample.captions)
    return texts, labels, np.asarray(owners, np.int32)
