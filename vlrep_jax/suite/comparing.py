"""Runs suites on several models and one data set."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlrep_jax import weights
from vlrep_jax.build import near
from vlrep_jax.data.class_files import names_of
from vlrep_jax.data.labelled import LabelledSet
from vlrep_jax.evals.zero_shot import class_embeddings
from vlrep_jax.metrics import Progress
from vlrep_jax.suite.features import embed_split, unreadable_line
from vlrep_jax.suite.suites import SUITES, Inputs, Measured, Options
from vlrep_jax.weights.encoding import encoder_of
from vlrep_jax.weights.reading import open_pretrained

TEMPLATES = ("a photo of a {}.",)
BATCH = 64  # pictures or texts embedded at once


class Comparison(NamedTuple):
    """What was measured, as plain values; docs/applications/evaluation.md explains the keys.

    Attributes:
      about: `data`, `shifted`, `classes` (label -> names), `templates`, `pictures` by split,
        `commonest` by split (the accuracy of always giving its commonest class), `options`, and
      `left_out`: why suites were not run.
      models: of each `name`, `path`, `unreadable` by split, `metrics` by suite and `details` by
        suite.
    """

    about: dict
    models: list[dict]


def compare(
    models: Sequence[str | Path],
    data: LabelledSet,
    *,
    shifted: LabelledSet | None = None,
    classes: str | Path | None = None,
    templates: Sequence[str] = TEMPLATES,
    suites: Sequence[str] | None = None,
    options: Options | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Comparison:
    """Evaluates models on a data set, each with its own preprocessing and tokenizer.

    Args:
      models: paths, see `weights.load`.
      data: as `open_labelled` gives it.
      shifted: another with the same classes, of which the test split shows what a shift costs.
      classes: file of class names, see `names_of`.
      templates: prompts with one `{}` each.
      suites: names in SUITES; None for all that the data have what they need for.
      options: of the suites.
      say: takes lines about what is going on.

    Raises:
      FileNotFoundError: a model or file is not there.
      ValueError: a model cannot be loaded, an unknown suite or one that cannot be run on these
        data, classes that differ between the sets, or no picture can be read.
    """
    options = options or Options()
    paths = [str(path) for path in models]
    names = short_names(paths)
    _check_classes(data, shifted)
    wanted, left_out = choose(data, suites)
    for name, reason in left_out.items():
        say(f"{name} is left out: {reason}")
    needs = {need for name in wanted for need in SUITES[name].needs}
    named = names_of(data.classes, classes)
    _check_models(paths, texts="texts" in needs)
    splits = {name: data.splits[name] for name in _splits_for(needs, data)}
    if shifted is not None and "classes" in needs:
        splits["shifted"] = _renumbered(shifted, data.classes)
    commonest = _commonest(splits) if "classes" in needs else {}
    results = []
    for name, path in zip(names, paths, strict=True):
        loaded = weights.load(path)
        inputs, unreadable = _inputs(name, loaded, splits, named, templates, needs, say)
        measured = {suite: _measured(name, suite, inputs, options) for suite in wanted}
        results.append(
            {
                "name": name,
                "path": path,
                "unreadable": {split: len(bad) for split, bad in unreadable.items()},
                "metrics": {suite: found.metrics for suite, found in measured.items()},
                "details": {suite: found.details for suite, found in measured.items()},
            }
        )
    about = {
        "data": data.name,
        "shifted": shifted.name if shifted is not None else None,
        "classes": {label: list(own) for label, own in zip(data.classes, named, strict=True)},
        "templates": list(templates),
        "pictures": {split: len(one.source) for split, one in splits.items()},
        "commonest": commonest,
        "options": options._asdict(),
        "left_out": left_out,
    }
    return Comparison(about, results)


def choose(data: LabelledSet, suites: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The suites to run in the order of SUITES, and why others are left out.

    Raises:
      ValueError: one that is asked for is unknown or cannot be run, or none can.
    """
    for name in suites or ():
        if name not in SUITES:
            raise ValueError(f"there is no suite {name!r}; {near(name, SUITES)}")
    labels = {name: split.labels[split.labels >= 0] for name, split in data.splits.items()}
    train = labels.get("train", ())
    held_out = len(labels.get("val", ())) or len(train) > len(set(train))
    lacks = {
        "classes": not len(labels["test"]) and "labels",
        "train": not len(train) and "labelled train split beside test",
        "validation": not held_out and "labelled val split, nor a class of two training pictures",
        "captions": not data.splits["test"].captions and "captions",
    }
    reasons = {need: f"{data.name} has no {what}" if what else "" for need, what in lacks.items()}
    reasons["texts"] = ""
    lacking = {
        name: next(filter(None, (reasons[need] for need in suite.needs)), "")
        for name, suite in SUITES.items()
    }
    for name in suites or ():
        if lacking[name]:
            raise ValueError(f"the suite {name} cannot be run: {lacking[name]}.")
    wanted = [name for name in SUITES if not lacking[name] and (not suites or name in suites)]
    if not wanted:
        raise ValueError(f"{data.name} has neither labels nor captions: nothing can be measured.")
    return wanted, {} if suites else {name: why for name, why in lacking.items() if why}


def short_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of paths that tell them apart.

    >>> short_names(["runs/a/model", "runs/b/model"])
    ['a/model', 'b/model']
    """
    if len(set(paths)) < len(paths):
        double = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"{double} is given twice.")
    parts = [Path(path).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _check_classes(data, shifted):
    if shifted is None or set(data.classes) == set(shifted.classes):
        return
    for one, other in ((data, shifted), (shifted, data)):
        only = sorted(set(one.classes) - set(other.classes))
        if only:
            raise ValueError(
                f"{data.name} and {shifted.name} differ in their classes: only {one.name} has "
                f"{len(only)}, such as {', '.join(map(repr, only[:3]))}."
            )


def _renumbered(shifted, classes):
    """The test split of a set whose classes may be in another order."""
    moved = shifted.splits["test"]
    number = np.array([*map(classes.index, shifted.classes), -1], np.int32)  # -1 stays -1
    return moved._replace(labels=number[moved.labels])


def _commonest(splits):
    """Of the splits that are tested."""
    found = {}
    for name in ("test", "shifted"):
        if name in splits:
            counts = np.bincount(splits[name].labels[splits[name].labels >= 0])
            if not counts.sum():
                raise ValueError(f"no picture of the {name} split has a label.")
            found[name] = float(counts.max() / counts.sum())
    return found


def _check_models(paths, texts):
    """Opens every model, so that one that cannot be used shows before hours with the others."""
    for path in paths:
        opened = open_pretrained(path)
        if texts and opened.tokenizer() is None:
            raise ValueError(
                f"{path} holds no tokenizer, which zero_shot, calibration and retrieval need; put "
                "its tokenizer.json beside it, or choose other suites."
            )


def _splits_for(needs, data):
    wanted = ["test"] + (["train", "val"] if "train" in needs else [])
    return [name for name in wanted if name in data.splits]


def _inputs(name, loaded, splits, named, templates, needs, say):
    """A model's `Inputs`, and the unreadable pictures by split."""
    encoder = encoder_of(loaded, BATCH)
    say(f"{name}: embedding {sum(len(one.source) for one in splits.values()):,} pictures")
    features, done = {}, 0
    progress = Progress(sum(len(one.source) for one in splits.values()), unit="picture")
    try:
        for split, held in splits.items():
            try:
                features[split] = embed_split(encoder, loaded.preprocess, held, progress, done)
            except ValueError as error:
                raise ValueError(f"{name}, {split}: {error}") from None
            done += len(held.source)
    finally:
        progress.close()
    unreadable = {split: one.unreadable for split, one in features.items()}
    for split, bad in unreadable.items():
        if bad:
            say(unreadable_line(name, split, bad))
    texts = "texts" in needs
    class_text = captions = None
    if texts and "classes" in needs:
        class_text = class_embeddings(encoder.texts, named, templates)
    if "captions" in needs:
        captions = encoder.texts(features["test"].captions)
    scale = encoder.scale()
    return Inputs(features, len(named), class_text, captions, scale), unreadable


def _measured(name, suite, inputs, options) -> Measured:
    try:
        return SUITES[suite].run(inputs, options)
    except ValueError as error:
        raise ValueError(f"{name}, {suite}: {error}") from None
