"""How well questions about pictures are answered, beside answers given without the picture."""

from collections import defaultdict

import numpy as np

from vlrep_jax.answers import accuracies, accuracy


def answering(names, logits, without, answers, kinds):
    """The VQA accuracy (`answers.accuracy`) of the likeliest answers, overall and by kind.

    Args:
      names: the a answers that a model knows.
      logits: float32[n, a], to each question with its picture.
      without: float32[n, a], by the same model without the picture.
      answers: of each question those of its annotators.
      kinds: of each question what kind it is of, a text; '' is the kind `untyped`.

    Returns:
      (metrics, details). Metrics: `accuracy`; `without_picture`, of the same model; `majority`, of
      the one answer that suits each kind best, and `majority_overall`, that suits all best, both
      chosen on these very questions; and of each kind `KIND/accuracy`, `KIND/without_picture`,
      `KIND/majority` and `KIND/questions`, how many there are. Details, of each question: `chosen`,
      `blank`, `scores`, `confidence`, `kinds` and `answers`.

    Raises:
      ValueError: a logit is NaN or infinite.
    """
    for one in (logits, without):
        if not np.isfinite(one).all():
            raise ValueError("An answer's logit is NaN or infinite; the model has diverged.")
    chosen, blank = ([names[i] for i in one.argmax(axis=1)] for one in (logits, without))
    scores, blind = (
        np.array([accuracy(*pair) for pair in zip(said, answers, strict=True)])
        for said in (chosen, blank)
    )
    rows = defaultdict(list)
    for row, kind in enumerate(kinds):
        rows[kind or "untyped"].append(row)
    metrics, total = {}, 0.0
    for kind, own in sorted(rows.items()):
        best = _best_constant([answers[row] for row in own])
        total += best
        metrics[f"{kind}/accuracy"] = float(scores[own].mean())
        metrics[f"{kind}/without_picture"] = float(blind[own].mean())
        metrics[f"{kind}/majority"] = best / len(own)
        metrics[f"{kind}/questions"] = float(len(own))
    overall = {
        "accuracy": float(scores.mean()),
        "without_picture": float(blind.mean()),
        "majority": total / len(scores),
        "majority_overall": _best_constant(answers) / len(scores),
    }
    confidence = 1 / (1 + np.exp(-np.asarray(logits, np.float64).max(axis=1)))
    details = dict(
        chosen=chosen,
        blank=blank,
        scores=scores,
        confidence=confidence,
        answers=list(answers),
        kinds=list(kinds),
    )
    return overall | metrics, details


def _best_constant(answers):
    """The sum of the accuracies of the one answer to all questions for which it is largest."""
    totals = defaultdict(float)
    for given in answers:
        for answer, value in accuracies(given).items():
            totals[answer] += value
    return max(totals.values(), default=0.0)
