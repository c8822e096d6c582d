"""Writing data sets as ArrayRecord, which every record is read from alike fast: TFDS's and ours."""

import io
import logging
import re
import shutil
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

_LOG = logging.getLogger(__name__)
_CHUNK = 256
_TYPES = (bool, int, float, str)


def prepare_tfds(name: str, data_dir: str = "") -> Path:
    """Prepares a data set of TFDS as ArrayRecord, and returns its directory.

    Args:
        name: as TFDS has it, such as `coco_captions/2014`.
        data_dir: of TFDS data sets; '' is TFDS's own.

    Raises:
        ModuleNotFoundError: preparing it needs a package that is not installed.
        ValueError: TFDS has no such data set, or it is prepared in another format.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        # It goes on with the names of all its data sets.
        line = _line(error).partition(" Available datasets")[0]
        raise ValueError(f"TFDS has no data set {name!r}: {line}") from error
    except ImportError as error:
        raise ModuleNotFoundError(
            f"Preparing {name} needs a package that is not installed ({_line(error)}); what builds "
            "with TensorFlow wants: pip install 'vlrep_jax[tfds-prepare]'. Reading never does."
        ) from error
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"{builder.data_dir} is there already, as {builder.info.file_format.value}, which "
            "needs TensorFlow to read; delete it or choose another data_dir."
        )
    return Path(builder.data_dir)


def write_array_record(source, out: str, *, split: str = "train") -> tuple[Path, Counter]:
    """Writes any source as a TFDS data set of ArrayRecord files.

    Its features are `image` (the encoded file as it is), `captions` (a sequence), `key`,
    `identity` and one for each label. Samples whose source cannot give them are left out.

    Args:
        source: an entry of SOURCES.
        out: directory to write; it must not be there, or be empty. Its name is the data set's.
        split: name of the one split.

    Returns:
        The directory that holds `dataset_info.json`, and how many samples were left out, by
        reason.

    Raises:
        FileExistsError: there is something at `out`.
        ValueError: no sample can be written, or labels are of other types from sample to sample.
    """
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already; name another directory, or delete it.")
    left_out = Counter()
    samples = _samples(source, left_out)
    first = next(samples, None)
    if first is None:
        raise ValueError(f"No sample can be written; left out: {dict(left_out)}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: what stands at `out` is complete.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as aside:
        builder = _builder(aside, _tfds_name(out.name), split, first, samples)
        # TFDS would announce a directory that is about to be renamed.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
        if out.exists():
            out.rmdir()
        shutil.move(str(builder.data_dir), out)
    return out, left_out


def _samples(source, left_out):
    for start in range(0, len(source), _CHUNK):
        for sample in source.__getitems__(range(start, min(start + _CHUNK, len(source)))):
            if sample.problem:
                left_out[sample.problem] += 1
            else:
                yield sample
        if start and start % (100 * _CHUNK) == 0:
            _LOG.info("written %s of %s samples", f"{start:,}", f"{len(source):,}")


def _tfds_name(name):
    """A directory's name as TFDS wants names: words of small letters and numbers."""
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return words if words[:1].isalpha() else f"set_{words}".rstrip("_")


def _builder(data_dir, data_set, split, first, rest):
    import tensorflow_datasets as tfds

    # TFDS keeps one class a name for the whole process; this one is no one else's.
    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Pictures with captions, written from another source by `vlrep data prepare`."""

        name = data_set
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            text = tfds.features.Text()
            types = {bool: np.bool_, int: np.int64, float: np.float64, str: text}
            features = {
                # Bytes are stored as they are, of whatever format and size.
                "image": tfds.features.Image(shape=(None, None, None)),
                "captions": tfds.features.Sequence(text),
                "key": text,
                "identity": text,
            }
            for label, value in first.labels.items():
                features[label] = types[_label_type(label, value)]
            return self.dataset_info_from_configs(
                description=self.__doc__,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples()}

        def _generate_examples(self):
            yield 0, _example(first, first)
            for number, sample in enumerate(rest, 1):
                yield number, _example(sample, first)

    return Written(data_dir=data_dir, file_format="array_record")


def _label_type(label, value):
    if label in ("image", "captions", "key", "identity") or type(value) not in _TYPES:
        raise ValueError(
            f"label {label!r} cannot be written: its name is taken, or {value!r} is no text, "
            "number or truth value. Leave it out of the source's labels."
        )
    return type(value)


def _example(sample, first):
    for label, value in sample.labels.items():
        if type(value) is not type(first.labels[label]):
            raise ValueError(
                f"label {label!r} of {sample.key} is {value!r}, but of {first.key} "
                f"{first.labels[label]!r}: labels that are written have one type."
            )
    fields = {"captions": list(sample.captions), "key": sample.key, "identity": sample.identity}
    return {"image": sample.image, **fields, **sample.labels}


def _line(error):
    return " ".join(str(error).split())[:300]
