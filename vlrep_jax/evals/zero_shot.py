"""Zero-shot classification: classes are embedded through prompts, images go to the nearest one."""

import numpy as np

from vlrep_jax.evals.retrieval import top_k
from vlrep_jax.scores import scores


def class_embeddings(encode_text, class_names, templates):
    """One embedding a class, ensembled over prompts as in CLIP (arXiv:2103.00020, section 3.1.4).

    Every prompt's embedding is normalised, averaged over the templates, and normalised again.

    Args:
      encode_text: list[str] -> float32[n, d]; called once, with every prompt.
      class_names: c names, put into the templates as they are; or for a class a sequence of names,
        whose prompts all count the same.
      templates: t strings with one `{}` each, such as 'a photo of a {}.'.

    Returns:
      float32[c, d], L2-normalised.

    Raises:
      ValueError: no class, no template, or a template without exactly one `{}`.
    """
    class_names, templates = list(class_names), list(templates)
    if not class_names or not templates:
        raise ValueError(f"{len(class_names)} classes and {len(templates)} templates: none empty.")
    named = [(names,) if isinstance(names, str) else tuple(names) for names in class_names]
    if not all(named):
        raise ValueError(f"class {named.index(())} has no name.")
    for template in templates:
        check_template(template)
    prompts = [one.replace("{}", name) for names in named for name in names for one in templates]
    embeddings = np.asarray(encode_text(prompts), np.float32)
    if embeddings.ndim != 2 or len(embeddings) != len(prompts):
        raise ValueError(
            f"encode_text gave shape {list(embeddings.shape)} for {len(prompts)} prompts; "
            "expected one row a prompt."
        )
    ends = np.cumsum([len(one) * len(templates) for one in named])
    own = np.split(_normalise(embeddings), ends[:-1])
    return _normalise(np.stack([rows.mean(0) for rows in own]))


def check_template(template):
    """Raises ValueError where a template has not exactly one place for a name."""
    if template.count("{}") != 1:
        raise ValueError(
            f"template {template!r} must hold {{}} exactly once, where the class name goes."
        )


def zero_shot(image, labels, class_embeddings, *, chunk=1024, mesh=None):
    """Accuracy of giving each image the class with the nearest embedding.

    Args:
      image: float32[n, d], L2-normalised.
      labels: int32[n], the right class; images labelled -1 are left out.
      class_embeddings: float32[c, d], L2-normalised.
      chunk, mesh: as in `retrieval.retrieval`.

    Returns:
      {name: float}: `top1`, `top5` (only where c > 5; with fewer it says little) and
      `mean_per_class`, the mean of the accuracies of the classes that have an image. Fractions.

    Raises:
      ValueError: shapes or labels do not fit together, no image is labelled, or an embedding is
        NaN or infinite.
    """
    predictions = predict(image, class_embeddings, chunk=chunk, mesh=mesh)
    return accuracy(predictions, labels, len(class_embeddings))


def predict(image, class_embeddings, *, chunk=1024, mesh=None):
    """The five nearest classes of each image (all of them where there are fewer): int32[n, 5]."""
    return top_k(image, class_embeddings, 5, chunk, mesh=mesh)[0]


def confidence(image, class_embeddings, scale, *, chunk=1024):
    """The probability of each image's likeliest class: float64[n].

    A softmax over the classes of scale * cosine, whatever the model was trained with (a bias would
    cancel); in float64 on the host.

    Args:
      image, class_embeddings: as of `zero_shot`.
      scale: of the model, 1 / temperature.
      chunk: images scored at once.
    """
    parts = [image[start : start + chunk] for start in range(0, len(image), chunk)]
    best = [scores(part, class_embeddings, scale).max(axis=1) for part in parts]
    return np.concatenate(best).astype(np.float64)


def accuracy(predictions, labels, n_classes):
    """`zero_shot`'s metrics from what `predict` returned."""
    labels = _labels(labels, len(predictions), n_classes)
    hits = predictions[labels >= 0] == labels[labels >= 0, None]
    metrics = {"top1": float(hits[:, 0].mean())}
    if n_classes > 5:
        metrics["top5"] = float(hits[:, :5].any(1).mean())
    per_class = per_class_accuracy(predictions, labels, n_classes)
    return metrics | {"mean_per_class": float(np.nanmean(per_class))}


def per_class_accuracy(predictions, labels, n_classes):
    """The share of each class's images that went to it: float64[c], NaN for one without images."""
    labels = _labels(labels, len(predictions), n_classes)
    right = np.bincount(labels[labels == predictions[:, 0]], minlength=n_classes)
    counts = np.bincount(labels[labels >= 0], minlength=n_classes)
    return np.where(counts, right / np.maximum(counts, 1), np.nan)


def confusion(predictions, labels, n_classes):
    """How many images of each class (row) went to each class (column): int64[c, c]."""
    labels = _labels(labels, len(predictions), n_classes)
    known = labels >= 0
    pairs = labels[known] * n_classes + predictions[known, 0]
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def _labels(labels, n, n_classes):
    labels = np.asarray(labels, np.int64)
    if labels.shape != (n,):
        raise ValueError(f"labels have shape {list(labels.shape)} for {n} images; expected [{n}].")
    if labels.min() < -1 or labels.max() >= n_classes:
        raise ValueError(
            f"labels hold {labels.min()} to {labels.max()}, but there are {n_classes} classes "
            "(and -1 for none)."
        )
    if not (labels >= 0).any():
        raise ValueError("no image has a label (all are -1): there is nothing to score.")
    return labels


def _normalise(x):
    """x over its L2 norm along the last dimension; zero stays zero."""
    return x / np.sqrt(np.maximum(np.square(x).sum(-1, keepdims=True), 1e-12))
