"""SUITES: name -> what is measured on a model's embeddings. Adding one is a function and a line."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from vlrep_jax.evals.calibration import expected_calibration_error, reliability
from vlrep_jax.evals.knn import knn
from vlrep_jax.evals.linear_probe import few_shot, hold_out, linear_probe
from vlrep_jax.evals.retrieval import retrieval
from vlrep_jax.evals.zero_shot import accuracy, confidence, predict
from vlrep_jax.suite.features import Features

HELD_OUT = 0.2  # of each class of train, where there is no val


class Options(NamedTuple):
    """What a user may choose.

    Attributes:
      knn_k: neighbours that vote.
      shots: training images a class of `few_shot`.
      seeds: draws of them.
      ks: depths of recall.
    """

    knn_k: int = 20
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    seeds: int = 3
    ks: tuple[int, ...] = (1, 5, 10)


class Inputs(NamedTuple):
    """What suites see of a model and a data set.

    Attributes:
      splits: of `train`, `val`, `test` and `shifted` those that there are.
      classes: how many.
      class_text: float32[c, d], embeddings of the classes; None where no suite asks for them.
      captions: float32[m, d] of the test split's; None likewise.
      scale: 1 / the model's temperature.
    """

    splits: Mapping[str, Features]
    classes: int
    class_text: np.ndarray | None
    captions: np.ndarray | None
    scale: float


class Measured(NamedTuple):
    """Metrics as fractions, and what else is worth knowing, in plain values."""

    metrics: dict[str, float]
    details: dict


class Suite(NamedTuple):
    """A suite and its needs, see `comparing.choose`: of the data, and `texts` of the model."""

    run: Callable[[Inputs, Options], Measured]
    needs: tuple[str, ...]


def run_zero_shot(inputs, options):
    """Accuracy of the nearest class embedding (`zero_shot.zero_shot`)."""
    del options
    return Measured(_accuracies(lambda image: predict(image, inputs.class_text), inputs), {})


def run_calibration(inputs, options):
    """Expected calibration error of the zero-shot softmax; details: the bins."""
    del options
    metrics, details = {}, {}
    for prefix, split in _tested(inputs):
        sure = confidence(split.image, inputs.class_text, inputs.scale)
        right = predict(split.image, inputs.class_text)[:, 0] == split.labels
        metrics[f"{prefix}ece"] = expected_calibration_error(sure, right)
        metrics[f"{prefix}confidence"] = float(sure.mean())
        found = reliability(sure, right)
        bins = {name: _plain(value) for name, value in found._asdict().items()}
        details |= {f"{prefix}{name}": value for name, value in bins.items()}
    return Measured(metrics, details)


def run_linear_probe(inputs, options):
    """Logistic regression on train, its C found on val, refitted on both."""
    del options
    train, val, which = _train_and_val(inputs)
    found = linear_probe(train.image, train.labels, val.image, val.labels)
    details = {
        "C": found.c,
        "iterations": found.probe.iterations,
        "validation": which,
        "tried": [{"C": c, "accuracy": score} for c, score in found.tried.items()],
    }
    return Measured(_accuracies(found.probe.predict, inputs), details)


def run_knn(inputs, options):
    """Weighted votes of the nearest training images."""
    train = inputs.splits["train"].labelled()
    known = dict(k=options.knn_k, n_classes=inputs.classes)
    vote = lambda image: knn(train.image, train.labels, image, **known)  # noqa: E731
    return Measured(_accuracies(vote, inputs), {"k": min(options.knn_k, len(train.image))})


def run_few_shot(inputs, options):
    """Probes on a few training images a class, over several draws of them.

    Left out are shots that a class has too few training images for.
    """
    train, val, which = _train_and_val(inputs)
    test = inputs.splits["test"].labelled()
    counts = np.bincount(train.labels, minlength=inputs.classes)
    fewest = int(counts[counts > 0].min())
    metrics, runs = {}, {}
    for shots in (n for n in options.shots if n <= fewest):
        top1 = []
        for seed in range(options.seeds):
            given = (train.image, train.labels, val.image, val.labels)
            probe = few_shot(*given, shots, seed).probe
            found = accuracy(probe.predict(test.image), test.labels, inputs.classes)
            top1.append(found["top1"])
        metrics[f"{shots}_shot"] = float(np.mean(top1))
        if options.seeds > 1:
            metrics[f"{shots}_shot_std"] = float(np.std(top1, ddof=1))
        runs[str(shots)] = top1
    if not metrics:
        raise ValueError(
            f"few_shot: a class has {fewest} training pictures, too few for {min(options.shots)} "
            "shots; ask for fewer."
        )
    left_out = [n for n in options.shots if n > fewest]
    details = {"top1": runs, "left_out": left_out, "fewest": fewest, "validation": which}
    return Measured(metrics, details)


def run_retrieval(inputs, options):
    """Recall@k with all captions of the test split (`retrieval.retrieval`)."""
    test = inputs.splits["test"]
    owners = test.image_of_caption
    metrics = retrieval(test.image, inputs.captions, owners, ks=options.ks)
    return Measured(metrics, {"pictures": len(test.image), "captions": len(owners)})


SUITES = {
    "zero_shot": Suite(run_zero_shot, ("classes", "texts")),
    "linear_probe": Suite(run_linear_probe, ("classes", "train", "validation")),
    "knn": Suite(run_knn, ("classes", "train")),
    "few_shot": Suite(run_few_shot, ("classes", "train", "validation")),
    "calibration": Suite(run_calibration, ("classes", "texts")),
    "retrieval": Suite(run_retrieval, ("captions", "texts")),
}


def _tested(inputs):
    """(prefix of metrics, split) of what is classified."""
    yield "", inputs.splits["test"].labelled()
    if "shifted" in inputs.splits:
        yield "shifted_", inputs.splits["shifted"].labelled()


def _accuracies(predictor, inputs):
    """Metrics of both sets and `gap`, how much top1 the shift costs."""
    metrics = {}
    for prefix, split in _tested(inputs):
        found = accuracy(predictor(split.image), split.labels, inputs.classes)
        metrics |= {f"{prefix}{name}": value for name, value in found.items()}
    if "shifted_top1" in metrics:
        metrics["gap"] = metrics["top1"] - metrics["shifted_top1"]
    return metrics


def _train_and_val(inputs):
    """Both as Features, and where val is from."""
    train = inputs.splits["train"].labelled()
    if "val" in inputs.splits and (inputs.splits["val"].labels >= 0).any():
        return train, inputs.splits["val"].labelled(), "val"
    held = hold_out(train.labels, HELD_OUT)
    parts = [Features(train.image[x], train.labels[x], [], None, []) for x in (~held, held)]
    return *parts, f"{HELD_OUT:.0%} of train"


def _plain(values):
    """A list for JSON, which has no NaN."""
    return [None if value != value else value for value in np.asarray(values).tolist()]
