"""Ranking the nearest items again by a model that reads both sides together.

A first list comes from the embeddings; its first `depth` items are put in the order of their
similarity's logit plus the judgement of the pair (`losses.matching` says why the sum), the others
stay behind them in their order.
"""

import numpy as np

from vlrep_jax.evals.retrieval import captions_of, ranks, top_k


def rerank(image, text, image_of_text, judge, *, scale, depth=16, ks=(1, 5, 10), **options):
    """`retrieval.retrieval`'s metrics of the lists ranked again.

    Args:
      image: float32[n, d], L2-normalised.
      text: float32[m, d], L2-normalised.
      image_of_text: int32[m], the image that each text describes.
      judge: (images int32[p], texts int32[p], direction) -> float32[p], logits that they are pairs;
        direction is `image_to_text` or `text_to_image`, from the queries to what is ranked.
      scale: of similarities as logits.
      depth: items of each list that are judged.
      ks: the depths of recall.
      options: `chunk` and `mesh`, as in `retrieval.retrieval`.

    Returns:
      (metrics, order): recalls and median ranks by their names in `retrieval.retrieval`, and for
      each direction int32[queries, depth], the judged items, best first.

    Raises:
      ValueError: as `retrieval.retrieval`, a depth < 1, or a judgement that is NaN or infinite.
    """
    captions = captions_of(image_of_text, len(image))
    owners = np.asarray(image_of_text)[:, None]
    metrics, orders = {}, {}
    for direction, queries, items, own in (
        ("image_to_text", image, text, captions),
        ("text_to_image", text, image, owners),
    ):
        found, similarities = top_k(queries, items, depth, **options)
        query = np.broadcast_to(np.arange(len(found))[:, None], found.shape)
        sides = (query, found) if direction == "image_to_text" else (found, query)
        logits = judge(*(side.ravel() for side in sides), direction).reshape(found.shape)
        if not np.isfinite(logits).all():
            raise ValueError(
                f"{(~np.isfinite(logits)).sum()} of {logits.size} judgements are NaN or infinite; "
                "the model has diverged."
            )
        # Stable: equal scores stay in the order of the list.
        turn = np.argsort(-(scale * similarities + logits), axis=1, kind="stable")
        order = np.take_along_axis(found, turn, axis=1)
        is_own = (order[:, :, None] == own[:, None, :]).any(axis=2)
        before = ranks(queries, items, own, **options)
        rank = np.where(is_own.any(axis=1), 1 + is_own.argmax(axis=1), before)[own[:, 0] >= 0]
        metrics |= {f"{direction}_recall@{k}": float(np.mean(rank <= k)) for k in ks}
        metrics[f"{direction}_median_rank"] = float(np.median(rank))
        orders[direction] = order
    return metrics, orders
