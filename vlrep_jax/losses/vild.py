"""ViLD's contrastive loss in the article's reading: symmetric InfoNCE at a fixed temperature."""

from vlrep_jax.losses.softmax import cross_entropy


def vild(
    image,
    text,
    scale,
    bias,
    *,
    axis_name=None,
    pair_ids=None,
    weights=None,
    chunk=None,
    sum_directions=False,
):
    """Symmetric InfoNCE; the model passes its fixed scale, 1 / 0.07, as `scale`.

    The article's code averages the two directions and its formula sums them: the default is
    `softmax`'s value, and `sum_directions=True` gives twice that. A constant scale needs no
    special care here, for nobody asks for its gradient.
    Arguments, result and errors as in `vlrep_jax.losses`.
    """
    del bias
    value, metrics = cross_entropy(
        image, text, scale, axis_name=axis_name, pair_ids=pair_ids, weights=weights, chunk=chunk
    )
    return value / (1 if sum_directions else 2), metrics
