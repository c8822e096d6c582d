"""TFDS data sets stored as ArrayRecord, read without TensorFlow."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vlrep_jax.data.sources.sample import (
    Sample,
    key_hashes,
    picture_identity,
    plain,
    text,
    texts,
)
from vlrep_jax.data.sources.stores import is_remote, local_path

_CHUNK = 1024


class Tfds:
    """A prepared ArrayRecord TFDS data set, read raw.

    Args:
        path: the version directory (it holds `dataset_info.json`), or a directory above it that
            holds exactly one, such as `data_dir/name`.
        dataset: instead of path, what TFDS calls it, such as `coco_captions/2014` or
            `my_set:1.0.0`, prepared in `data_dir`.
        data_dir: of TFDS data sets; by default TFDS's own, ~/tensorflow_datasets or what
            TFDS_DATA_DIR names.
        split: name of a split, slices such as `train[:1%]` included.
        image, captions: dotted paths of features; captions may be one text, a list of texts, or
            repeated inside a sequence (`captions.text` for COCO); '' where there are none, as for
            pictures to classify.
        key: dotted path of a unique feature; by default the record's number.
        identity: dotted path of a feature that records of one picture share, or "image": the hash
            of the picture's bytes. Samples of equal identity are never each other's negatives.
        labels: label name -> dotted path of a feature.

    Raises:
        FileNotFoundError: there is no prepared data set at `path`.
        ValueError: it has no such split or feature, its captions are no texts, or it is not
            ArrayRecord.
    """

    def __init__(
        self,
        path: str | os.PathLike = "",
        split: str = "train",
        *,
        image: str = "image",
        captions: str = "captions",
        key: str = "",
        identity: str = "",
        labels: Mapping[str, str] | None = None,
        dataset: str = "",
        data_dir: str | os.PathLike = "",
    ):
        self.path = directory_of(path, dataset, data_dir)
        self.split = split
        self._paths = {"image": image} | ({"captions": captions} if captions else {})
        self._paths |= {"key": key} if key else {}
        self._identity = identity
        self._paths |= {"identity": identity} if identity not in ("", "image") else {}
        self._labels = dict(labels or {})
        self._records, self._parse = self._open()

    def _open(self):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.path)
        splits = sorted(builder.info.splits)
        if self.split.split("[")[0] not in splits:
            raise ValueError(f"{self.path} has no split {self.split!r}; it has {splits}.")
        file_format = getattr(builder.info.file_format, "value", None)
        if file_format != "array_record":
            raise ValueError(
                f"{self.path} is stored as {file_format}, which needs TensorFlow to read; prepare "
                "it again with file_format='array_record'."
            )
        wanted = [*self._paths.values(), *self._labels.values()]
        known = feature_paths(builder.info.features)
        for path in wanted:
            if path not in known:
                raise ValueError(f"{self.path} has no feature {path!r}; it has {sorted(known)}.")
        picture = self._paths["image"]
        if not isinstance(feature_at(builder.info.features, picture), tfds.features.Image):
            raise ValueError(f"{picture!r} of {self.path} is not an image feature.")
        if "captions" in self._paths:
            _check_texts(builder.info.features, self._paths["captions"], self.path)
        self.name = f"{builder.info.name}/{builder.info.version}"
        whole = builder.info.splits[self.split.split("[")[0]]
        self._content = [whole.num_bytes, whole.shard_lengths]
        # Only what is asked for is parsed, and the picture stays encoded: five times faster.
        features = _subset(builder.info.features, _nested(dict.fromkeys(wanted)))
        decoders = _nested({self._paths["image"]: tfds.decode.SkipDecoding()})
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        parts = builder.info.splits[self.split].file_instructions
        self._files = [os.fspath(part.filename) for part in parts]
        self._ends = np.cumsum([part.take for part in parts])
        records = builder.as_data_source(self.split, deserialize_method=raw)
        return records, lambda record: features.deserialize_example_np(record, decoders=decoders)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        """Samples by number; of a damaged or absent file they have a problem."""
        indices = [int(index) for index in indices]
        records = self._read(indices)
        return [self._checked(i, record) for i, record in zip(indices, records, strict=True)]

    def _read(self, indices):
        """The record of each index; None for one that cannot be read."""
        try:
            return self._records.__getitems__(indices)
        except RuntimeError:  # all that array_record says of a file; one record spoils all
            if len(indices) == 1:
                return [None]
            return [record for index in indices for record in self._read([index])]

    def _checked(self, index, record):
        try:
            example = self._parse(record)
        except Exception:  # of protobuf, or of features that are not there
            problem = "corrupt" if os.path.exists(self.shard_of(index)) else "missing"
            return Sample(b"", (), f"#{index}", {}, problem=problem)
        return self._sample(index, example)

    def shard_of(self, index):
        """The file that a sample lies in."""
        return self._files[np.searchsorted(self._ends, index, "right")]

    def _sample(self, index, example):
        key = text(_at(example, self._paths["key"])) if "key" in self._paths else str(index)
        labels = {name: plain(_at(example, path)) for name, path in self._labels.items()}
        picture = bytes(_at(example, self._paths["image"]))
        if "identity" in self._paths:
            identity = str(plain(_at(example, self._paths["identity"])))
        else:
            identity = picture_identity(picture) if self._identity else ""
        captions = ()
        if "captions" in self._paths:
            captions = texts(_at(example, self._paths["captions"]))
        return Sample(picture, captions, key, labels, identity)

    def key_hashes(self):
        """uint64[n], as `sample.key_hashes`; where no feature is the key, nothing is read."""
        if "key" not in self._paths:
            return key_hashes(map(str, range(len(self))))
        chunks = (
            range(start, min(start + _CHUNK, len(self))) for start in range(0, len(self), _CHUNK)
        )
        hashes = [key_hashes(s.key for s in self.__getitems__(chunk)) for chunk in chunks]
        return np.concatenate([np.zeros(0, np.uint64), *hashes])

    def fingerprint(self):
        """Stable hash of the data set's name, version, split, sizes and feature mapping."""
        held = [self.name, self.split, len(self), self._content, self._paths, self._labels]
        held += [self._identity] if self._identity else []
        return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()

    def __getstate__(self):
        opened = ("_records", "_parse")
        return {name: value for name, value in vars(self).items() if name not in opened}

    def __setstate__(self, state):
        vars(self).update(state)
        self._records, self._parse = self._open()


def directory_of(path="", dataset="", data_dir=""):
    """The version directory of a prepared data set, by the arguments of `Tfds`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: both or neither of path and dataset are given, or the path is remote.
    """
    if path and dataset:
        raise ValueError(f"path={str(path)!r} and dataset={dataset!r} are given; name one.")
    if not path and not dataset:
        raise ValueError(
            "The path of the TFDS data set is empty; name the directory of a prepared one, for "
            "example --config.data.source.path=DIR."
        )
    if dataset:
        path = _named_directory(dataset, data_dir)
    if is_remote(os.fspath(path)):
        raise ValueError(
            f"{path}: ArrayRecord is read from local disks; mount the store, or copy the data set "
            "once."
        )
    return _version_directory(Path(local_path(os.fspath(path))))


def _at(example, path):
    """The value at a dotted path; a list of mappings gives a list of values."""
    value = example
    for part in path.split("."):
        value = [item[part] for item in value] if isinstance(value, list | tuple) else value[part]
    return value


def _nested(paths):
    tree = {}
    for path, value in paths.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _subset(features, tree):
    """TFDS features cut down to `tree`; PartialDecoding does the same, but with TensorFlow."""
    import tensorflow_datasets as tfds

    if tree is None:
        return features
    if isinstance(features, tfds.features.Sequence):
        return tfds.features.Sequence(_subset(features.feature, tree))
    return tfds.features.FeaturesDict({k: _subset(features[k], v) for k, v in tree.items()})


def feature_paths(features, prefix=""):
    """Every dotted path in a TFDS feature tree, inner nodes included."""
    inner = getattr(features, "feature", features)  # a Sequence wraps its element
    paths = {prefix[:-1]} if prefix else set()
    if hasattr(inner, "keys"):
        for name in inner.keys():  # noqa: SIM118, not a mapping
            paths |= feature_paths(inner[name], f"{prefix}{name}.")
    return paths


def feature_at(features, path):
    """The feature of a TFDS feature tree at a dotted path."""
    for name in path.split("."):
        features = getattr(features, "feature", features)[name]
    return features


def _check_texts(features, path, where):
    """Refuses captions that would be numbers, or whole mappings as Python writes them."""
    feature = feature_at(features, path)
    while hasattr(feature, "feature"):  # a Sequence wraps its element
        feature = feature.feature
    if hasattr(feature, "keys"):
        inner = ", ".join(repr(f"{path}.{name}") for name in sorted(feature.keys()))
        raise ValueError(f"captions={path!r} of {where} holds several features; name one: {inner}.")
    if feature.np_dtype not in (object, str, bytes, np.str_):
        raise ValueError(f"captions={path!r} of {where} is no text: {feature!r}.")


def _named_directory(dataset, data_dir):
    """Where TFDS keeps a data set of that name, configuration and version."""
    top = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    path = Path(top).expanduser() / dataset.replace(":", "/")
    if not path.is_dir():
        raise FileNotFoundError(
            f"{dataset} is not prepared in {top}; run: vlrep data prepare {dataset} "
            f"--data_dir={top}"
        )
    return path


def _version_directory(path):
    if (path / "dataset_info.json").exists():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a directory; expected a prepared TFDS data set.")
    found = sorted(
        str(p.parent) for d in range(1, 4) for p in path.glob("*/" * d + "dataset_info.json")
    )
    if len(found) != 1:
        listing = found or sorted(p.name for p in path.iterdir())[:20]
        raise FileNotFoundError(
            f"{path} holds {len(found)} prepared TFDS data sets, expected one (dataset_info.json). "
            f"It has: {listing}"
        )
    return Path(found[0])
