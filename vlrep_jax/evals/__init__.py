"""EVALS: name -> evaluate(encoder, data, **options) -> EvalResult. Adding one is a line here.

An evaluation meets the model only as an `Encoder` and the data only as `EvalData`, so it runs the
same on a training state, on other projects' weights and on hand-made arrays.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vlrep_jax.evals.answering import answering
from vlrep_jax.evals.calibration import expected_calibration_error
from vlrep_jax.evals.rerank import rerank
from vlrep_jax.evals.retrieval import chance, retrieval
from vlrep_jax.evals.zero_shot import (
    accuracy,
    class_embeddings,
    confidence,
    per_class_accuracy,
    predict,
)


class Encoder(Protocol):
    """A model as evaluations see it; `images` and `texts` give L2-normalised float32[n, d].

    `encoder.Encoder` is one, and says what else one of a model that reads pairs has.
    """

    def images(self, batches: Iterable[Mapping]) -> np.ndarray:
        """Embeds dicts of `image` and `index`; rows of index -1 are padding, left out."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds strings, one row each."""

    def scale(self) -> float:
        """Of similarities as logits, 1 / temperature."""


class ClassSet(Protocol):
    """A way to label the images of an `EvalData`."""

    class_names: Sequence[str | Sequence[str]]
    templates: Sequence[str]  # prompts with one `{}`
    labels: np.ndarray  # int32[n], -1 for an image that has no class


class EvalData(Protocol):
    """The n images, m captions and class sets that an evaluation reads."""

    captions: Sequence[str]
    image_of_caption: np.ndarray  # int32[m]

    def image_batches(self) -> Iterable[Mapping]:
        """The images in order, from the start at every call."""

    def class_set(self, which: str | Mapping) -> ClassSet:
        """The class set of that name, or of these options."""

    def labels(self, name: str) -> Sequence:
        """What is known of each image under that name."""


class EvalResult(NamedTuple):
    metrics: dict[str, float]
    details: dict  # what a report draws: NumPy arrays and names


def evaluate_retrieval(encoder, data, *, image=None, ks=(1, 5, 10), chunk=1024, mesh=None):
    """`retrieval.retrieval` over the data's captions.

    Args:
      encoder, data: an `Encoder` and an `EvalData`.
      image: float32[n, d] where the data's images are embedded already, as in `details['image']`
        of an earlier evaluation; None to embed them here.
      ks, chunk, mesh: as in `retrieval.retrieval`.

    Returns:
      Its metrics; details: `image`, `text` (embeddings), `image_of_text`, `chance` (the recalls of
      a random order).
    """
    image = encoder.images(data.image_batches()) if image is None else image
    text = encoder.texts(data.captions)
    owners = np.asarray(data.image_of_caption)
    metrics = retrieval(image, text, owners, ks=ks, chunk=chunk, mesh=mesh)
    odds = chance(owners, len(image), ks=ks)
    return EvalResult(metrics, dict(image=image, text=text, image_of_text=owners, chance=odds))


def evaluate_rerank(
    encoder,
    data,
    *,
    image=None,
    depth=16,
    matching=1.0,
    captions=1.0,
    prior=32,
    ks=(1, 5, 10),
    chunk=1024,
    mesh=None,
):
    """`rerank.rerank` over the data's captions, by a model that reads pairs.

    A pair's judgement is `matching` times its logit and, of a model that writes captions,
    `captions` times log p(text | picture) - log p(text): how much likelier the picture makes the
    text. p(text), the mean over pictures, matters only where texts are ranked, which differ in how
    likely they are of any picture.

    Args:
      encoder, data, image: as in `evaluate_retrieval`.
      matching: weight of the first; less than 1 for a judge that is too sure of new concepts.
      captions: weight of the second; 0 for the logit alone.
      prior: pictures of the data, evenly spread, that p(text) is the mean over; each text in a list
        costs as many more judgements.
      depth, ks, chunk, mesh: as in `rerank.rerank`.

    Returns:
      Its metrics, and under `towers/` those of the same lists before; details: as
      `evaluate_retrieval`, and `order`, by direction int32[queries, depth].

    Raises:
      ValueError: the model judges no pairs, or a prior < 1; or as `rerank.rerank`.
    """
    if prior < 1:
        raise ValueError(f"prior={prior} must be at least 1 picture.")
    towers = evaluate_retrieval(encoder, data, image=image, ks=ks, chunk=chunk, mesh=mesh)
    image_tokens = encoder.image_tokens(data.image_batches())
    text_tokens = encoder.text_tokens(data.captions)
    details = towers.details

    count = len(details["image"])
    pictures = np.unique(np.linspace(0, count - 1, min(prior, count)).round().astype(np.int32))

    def log_p(texts):
        texts, place = np.unique(texts, return_inverse=True)
        pairs = np.tile(pictures, len(texts)), np.repeat(texts, len(pictures))
        told = encoder.judge(image_tokens, text_tokens, *pairs)[:, 1]
        told = told.reshape(len(texts), len(pictures))
        return (np.logaddexp.reduce(told, axis=1) - np.log(len(pictures)))[place]

    def judge(images, texts, direction):
        said = encoder.judge(image_tokens, text_tokens, images, texts)
        scores = matching * said[:, 0]
        if captions and said.shape[1] > 1:
            gain = said[:, 1] - (log_p(texts) if direction == "image_to_text" else 0)
            scores = scores + captions * gain
        return scores

    metrics, order = rerank(
        *(details[name] for name in ("image", "text", "image_of_text")),
        judge,
        scale=encoder.scale(),
        depth=depth,
        ks=ks,
        chunk=chunk,
        mesh=mesh,
    )
    before = {f"towers/{name}": value for name, value in towers.metrics.items()}
    return EvalResult(metrics | before, details | {"order": order})


def evaluate_zero_shot(encoder, data, *, sets, image=None, chunk=1024, mesh=None):
    """`zero_shot.zero_shot` over one or several of the data's class sets.

    Args:
      encoder, data, image: as in `evaluate_retrieval`.
      sets: what `data.class_set` takes: names, or mappings with a `name` for the metrics.
      chunk, mesh: as in `zero_shot.zero_shot`.

    Returns:
      `top1`, the mean over the sets, and each set's metrics as `SET/top1` and so on, with `ece`,
      the expected calibration error at the model's own temperature; details: `image`, and `sets`:
      for each one `class_names`, `labels` int32[n], `predictions` int32[n, 5]
      (`zero_shot.confusion` counts them) and `per_class` float64[c] as `per_class_accuracy`.

    Raises:
      ValueError: no set is named; or as `zero_shot.zero_shot`.
    """
    sets = class_sets(sets)
    if not sets:
        raise ValueError("sets is empty: name at least one class set to classify.")
    image = encoder.images(data.image_batches()) if image is None else image
    metrics, details = {}, {}
    for name, which in sets.items():
        classes = data.class_set(which)
        embeddings = class_embeddings(encoder.texts, classes.class_names, classes.templates)
        predictions = predict(image, embeddings, chunk=chunk, mesh=mesh)
        scores = accuracy(predictions, classes.labels, len(embeddings))
        known = np.asarray(classes.labels) >= 0
        sure = confidence(image[known], embeddings, encoder.scale(), chunk=chunk)
        right = (predictions[:, 0] == classes.labels)[known]
        scores["ece"] = expected_calibration_error(sure, right)
        metrics |= {f"{name}/{key}": value for key, value in scores.items()}
        details[name] = dict(
            class_names=[one if isinstance(one, str) else one[0] for one in classes.class_names],
            labels=np.asarray(classes.labels),
            predictions=predictions,
            per_class=per_class_accuracy(predictions, classes.labels, len(embeddings)),
        )
    mean = float(np.mean([metrics[f"{name}/top1"] for name in sets]))
    return EvalResult({"top1": mean, **metrics}, dict(image=image, sets=details))


def evaluate_answers(encoder, data, *, image=None, mesh=None):
    """`answering.answering` over the data's captions, questions, one an image.

    Args:
      encoder: of a model with answers.
      data: an `EvalData` whose label `answers` holds those of each question's annotators, and
        `question_type` what kind it is of.
      image, mesh: not needed: pictures and questions are read together.

    Returns:
      Its metrics; details: `questions`, `chosen` and `blank` (the answers with the picture and
      without), `confidence` (float32[n], of the chosen), `answers` and `scores` float64[n].

    Raises:
      ValueError: the model has no answers, the data are no questions, or nobody answered one.
    """
    del image, mesh
    questions = list(data.captions)
    if not np.array_equal(data.image_of_caption, np.arange(len(questions))):
        raise ValueError("Each image must have one caption, a question.")
    answers, kinds = data.labels("answers"), data.labels("question_type")
    unanswered = sum(not given for given in answers)
    if unanswered:
        raise ValueError(
            f"{unanswered} of {len(answers)} questions have no annotators' answers to score by; "
            "the source 'vqa' reads them from annotations=FILE."
        )
    names, logits = encoder.answers(data.image_batches(), questions)
    _, without = encoder.answers(data.image_batches(), questions, blank=True)
    metrics, details = answering(names, logits, without, answers, kinds)
    return EvalResult(metrics, details | {"questions": questions})


def class_sets(sets) -> dict:
    """name -> what `EvalData.class_set` takes, of one or several sets.

    Raises:
      ValueError: a mapping has no name, or two sets have one.
    """
    sets = (sets,) if isinstance(sets, str | Mapping) else tuple(sets)
    names = [one if isinstance(one, str) else one.get("name") for one in sets]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"sets have the names {names}; each needs one of its own.")
    return dict(zip(names, sets, strict=True))


def check_sizes(*, ks=(1,), chunk=1, depth=1, **_) -> None:
    """Raises ValueError where the depths of recall or the sizes of an evaluation make no sense."""
    if not isinstance(ks, list | tuple) or not ks or not all(map(_is_count, ks)):
        raise ValueError(
            f"ks={ks!r} must be a list of whole numbers from 1 on, such as (1, 5, 10)."
        )
    for name, size in (("chunk", chunk), ("depth", depth)):
        if not _is_count(size):
            raise ValueError(f"{name}={size!r} must be a whole number from 1 on.")


def _is_count(x):
    return isinstance(x, int) and not isinstance(x, bool) and x >= 1


EVALS = {
    "answers": evaluate_answers,
    "rerank": evaluate_rerank,
    "retrieval": evaluate_retrieval,
    "zero_shot": evaluate_zero_shot,
}
