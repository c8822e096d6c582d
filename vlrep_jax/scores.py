"""What a model's similarities mean as numbers between 0 and 1; on the host, in NumPy."""

import numpy as np


def scores(image, text, scale, bias=None):
    """Scores of every text for every image.

    A model without a bias (CLIP) was trained to pick one text of many: its scores are a softmax
    over the candidates, which add up to 1, and change with the candidates. A model with a bias
    (SigLIP) was trained to judge each pair alone: its scores are a sigmoid a pair, so that none of
    the texts, or several, may fit.

    Args:
        image, text: L2-normalised float[n, d] and float[c, d].
        scale, bias: of the model (`scale_and_bias`); logits are scale * <image, text> + bias. bias
            is None in a model that has none.

    Returns:
        float32[n, c] in [0, 1], computed in float64.

    Raises:
        ValueError: the embeddings do not fit together, or there is no text.
    """
    image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1] or not len(text):
        raise ValueError(
            f"image has shape {list(image.shape)} and text {list(text.shape)}; expected [n, d] and "
            "[c, d] with at least one text."
        )
    logits = np.float64(scale) * (image @ text.T)
    if bias is None:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.float32(powers / powers.sum(axis=1, keepdims=True))
    # 1 / (1 + exp(-x)) without overflow for large negative x.
    return np.float32(np.exp(-np.logaddexp(0.0, -(logits + np.float64(bias)))))
