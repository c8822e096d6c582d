"""TFDS data sets stored as ArrayRecord, read without TensorFlow."""

import hashlib
import json
from pathlib import Path

from vlrep_jax.data.sources.sample import Sample, plain, text, texts


class Tfds:
    """A prepared ArrayRecord TFDS data set, read raw.

    Args:
        path: the version directory (it holds `dataset_info.json`), or a directory above it that
            holds exactly one, such as `data_dir/name`.
        split: name of a split, slices such as `train[:1%]` included.
        image, captions: dotted paths of features; captions may be one text, a list of texts, or
            repeated inside a sequence (`captions.text` for COCO).
        key: dotted path of a unique feature; by default the record's number.
        labels: label name -> dotted path of a feature.

    Raises:
        FileNotFoundError: there is no prepared data set at `path`.
        ValueError: it has no such split or feature, or is not ArrayRecord.
    """

    def __init__(self, path, split, *, image="image", captions="captions", key="", labels=None):
        if not path:
            raise ValueError(
                "The path of the TFDS data set is empty; name the directory of a prepared one, for "
                "example --config.data.source.path=DIR."
            )
        self.path = _version_directory(Path(path).expanduser().absolute())
        self.split = split
        self._paths = {"image": image, "captions": captions}
        self._paths |= {"key": key} if key else {}
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
        known = _feature_paths(builder.info.features)
        for path in wanted:
            if path not in known:
                raise ValueError(f"{self.path} has no feature {path!r}; it has {sorted(known)}.")
        picture = self._paths["image"]
        if not isinstance(_feature(builder.info.features, picture), tfds.features.Image):
            raise ValueError(f"{picture!r} of {self.path} is not an image feature.")
        self.name = f"{builder.info.name}/{builder.info.version}"
        # Only what is asked for is parsed, and the picture stays encoded: five times faster.
        features = _subset(builder.info.features, _nested(dict.fromkeys(wanted)))
        decoders = _nested({self._paths["image"]: tfds.decode.SkipDecoding()})
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(self.split, deserialize_method=raw)
        return records, lambda record: features.deserialize_example_np(record, decoders=decoders)

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        indices = [int(index) for index in indices]
        records = self._records.__getitems__(indices)
        return [self._sample(i, self._parse(r)) for i, r in zip(indices, records, strict=True)]

    def _sample(self, index, example):
        key = text(_at(example, self._paths["key"])) if "key" in self._paths else str(index)
        labels = {name: plain(_at(example, path)) for name, path in self._labels.items()}
        return Sample(
            bytes(_at(example, self._paths["image"])),
            texts(_at(example, self._paths["captions"])),
            key,
            labels,
        )

    def fingerprint(self):
        """Stable hash of the data set's name, version, split, size and feature mapping."""
        held = [self.name, self.split, len(self), self._paths, self._labels]
        return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()

    def __getstate__(self):
        opened = ("_records", "_parse")
        return {name: value for name, value in vars(self).items() if name not in opened}

    def __setstate__(self, state):
        vars(self).update(state)
        self._records, self._parse = self._open()


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


def _feature_paths(features, prefix=""):
    """Every dotted path in a TFDS feature tree, inner nodes included."""
    inner = getattr(features, "feature", features)  # a Sequence wraps its element
    paths = {prefix[:-1]} if prefix else set()
    if hasattr(inner, "keys"):
        for name in inner.keys():  # noqa: SIM118, not a mapping
            paths |= _feature_paths(inner[name], f"{prefix}{name}.")
    return paths


def _feature(features, path):
    for name in path.split("."):
        features = getattr(features, "feature", features)[name]
    return features


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
