"""A model and a loss as one function of the parameters, which a train step differentiates."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from vlrep_jax.losses.answering import answer_costs
from vlrep_jax.losses.captioning import token_costs
from vlrep_jax.models import RUNNING, trains_batch_norm
from vlrep_jax.rules import match_rules

# (params, batch, key) -> (value, metrics). Beside numbers the metrics of a model whose batch norms
# train hold `RUNNING`, a part of the tree of parameters: what replaces its running statistics.
Objective = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def normalizer(mean: Sequence[float], std: Sequence[float]) -> Callable:
    """Pixels to what a tower takes: uint8[..., 3] -> float32[..., 3], (x / 255 - mean) / std.

    It runs on the device: bytes are a quarter of what float32 pixels cost to send. Images that are
    float32 already count as normalised and pass.
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)

    def normalize(images):
        if images.dtype != jnp.uint8:
            return images
        shape = (1,) * (images.ndim - 1) + (3,)
        return (images.astype(jnp.float32) / 255 - mean.reshape(shape)) / std.reshape(shape)

    return normalize


def chunked(encode: Callable, chunks: int, *, recompute: bool = True) -> Callable:
    """`encode` over one chunk of the rows after another: the same result, a chunk's work at a time.

    It is the gradient of the whole batch: a loss over the result sees every row.

    Args:
      encode: (batch, key) -> tree. Every leaf of both is [b, ...], computed row by row.
      chunks: divides the rows; 1 is `encode`. A batch that is split over devices has to divide into
        chunks on each of them.
      recompute: whether what the backward pass needs of a chunk is computed again when its turn
        comes (cached gradients, arXiv:2101.06983): memory of one chunk for one more forward pass,
        whatever the number of chunks. Otherwise it is kept, of all chunks.

    Returns:
      run(batch, key), as `encode`; chunk i has the key `fold_in(key, i)`.

    Raises:
      ValueError: from `run`, where `chunks` does not divide the rows.
    """
    if chunks == 1:
        return encode

    def run(batch, key):
        rows = len(jax.tree.leaves(batch)[0])
        if rows % chunks:
            raise ValueError(f"{rows} rows cannot be split into {chunks} equal chunks.")
        # Strided chunks, row i in chunk i % chunks, keep every device's rows local; of contiguous
        # blocks each would lie on a few devices, and the images would be gathered.
        strided = jax.tree.map(lambda x: x.reshape(-1, chunks, *x.shape[1:]), batch)

        def encode_chunk(index):
            chunk = jax.tree.map(lambda x: x[:, index], strided)
            return encode(chunk, jax.random.fold_in(key, index))

        if recompute:
            # Inside a loop nothing can merge the second computation with the first.
            encode_chunk = jax.checkpoint(encode_chunk, prevent_cse=False)
        stacked = jax.lax.map(encode_chunk, jnp.arange(chunks))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(rows, *x.shape[2:]), stacked)

    return run


def microbatched(encode: Callable, size: int) -> Callable:
    """`encode` over at most `size` rows at a time, for speed: what is at work stays in fast memory.

    Nothing is computed twice and no memory is saved but that of one microbatch's work: the model's
    own rematerialisation says what is kept of each layer. For a TPU v5e a step with 128 images of a
    ViT-B/16 is planned at 266 ms in turns of 32 and at 330 ms at once (docs/performance.md).

    Args:
      encode: as for `chunked`.
      size: rows; the largest divisor of the rows up to it is taken. 0 takes all rows at once.
    """

    def run(batch, key):
        rows = len(jax.tree.leaves(batch)[0])
        fits = max(n for n in range(1, min(size or rows, rows) + 1) if rows % n == 0)
        return chunked(encode, rows // fits, recompute=False)(batch, key)

    return run


def contrastive(
    model,
    loss: Callable,
    normalize: Callable = lambda images: images,
    *,
    chunks: int = 1,
    microbatch: Mapping[str, int] | None = None,
    place: Callable = lambda encode: encode,
) -> Objective:
    """The contrastive objective of a two-sided model.

    Args:
      model: has the methods `encode_image`, `encode_text` and `scale_and_bias`.
      loss: an entry of LOSSES with its axis bound, or as an island made by `per_shard`.
      normalize: applied to `batch['image']` first.
      chunks: rows are embedded in so many parts with cached gradients, see `chunked`.
      microbatch: of each part so many rows at a time, for 'image' and 'text'; see `microbatched`.
      place: what runs encode(params, pairs, key) -> (rows, running statistics) where the rows are,
        such as `parallel.on_own_rows` with its mesh bound.

    Returns:
      objective(params, batch, key) -> (value, metrics). The batch holds `image`, `text` and, where
      there are any, `pair_ids` and `weights`, which the loss is given by name.

    Raises:
      ValueError: parts of a batch for a model whose batch norms train: they would normalise each
        with its own statistics.
    """
    microbatch = {"image": 0, "text": 0} | dict(microbatch or {})
    if trains_batch_norm(model) and (chunks > 1 or microbatch["image"]):
        raise ValueError(
            f"Batch norm needs all images at once, not chunks={chunks} and "
            f"microbatch.image={microbatch['image']}: set them to 1 and 0, or the image tower's "
            "batch_norm='frozen'."
        )

    def encode(params, pairs, key):
        def image(pixels, key):
            # Of few rows: in float32 they are 4 times as large.
            return _apply(model, params, key, normalize(pixels), method="encode_image")

        def text(tokens, key):
            return _apply(model, params, key, tokens, method="encode_text")[0]

        def both(pairs, key):
            # Two keys: one transformer may serve both sides.
            image_key, text_key = jax.random.split(key)
            images, running = microbatched(image, microbatch["image"])(pairs["image"], image_key)
            texts = microbatched(text, microbatch["text"])(pairs["text"], text_key)
            return (images, texts), running

        return chunked(both, chunks)(pairs, key)

    def objective(params, batch, key):
        pairs = {name: batch[name] for name in ("image", "text")}
        (image, text), running = place(encode)(params, pairs, key)
        scale, bias = model.apply({"params": params}, method="scale_and_bias")
        named = {name: batch[name] for name in ("pair_ids", "weights") if name in batch}
        value, metrics = loss(image, text, scale, bias, **named)
        metrics = {"loss": value, "logit_scale": scale, **metrics}
        return value, metrics | ({RUNNING: running} if running else {})

    return objective


def captioned(
    model,
    loss: Callable,
    captioning: Callable,
    normalize: Callable = lambda images: images,
    *,
    weight: float = 2.0,
    chunks: int = 1,
    microbatch: Mapping[str, int] | None = None,
    place: Callable = lambda encode: encode,
) -> Objective:
    """CoCa's objective: the contrastive loss + weight * the captioning loss (arXiv:2205.01917).

    Args:
      model: a `models.CoCa`.
      captioning: `losses.captioning` with its axis bound, or as an island made by `per_shard`.
      weight: of the captioning loss; the paper's is 2.
      microbatch: pairs go through all three parts together, so 'image' counts for both sides.
      the others: as in `contrastive`.

    Returns:
      As `contrastive`; the metrics add the two terms, `contrastive` and `captioning`.
    """
    at_once = dict(microbatch or {}).get("image", 0)

    def encode(params, pairs, key):
        def rows(pairs, key):
            images, tokens = normalize(pairs["image"]), pairs["text"]
            out, _ = _apply(model, params, key, images, tokens)
            # Of few rows: logits are the largest thing there is.
            costs = token_costs(out.logits, tokens[:, 1:], pad_id=model.text.pad_id)
            return out.image, out.text, *costs

        return chunked(microbatched(rows, at_once), chunks)(pairs, key), {}

    def objective(params, batch, key):
        pairs = {name: batch[name] for name in ("image", "text")}
        (image, text, costs, counts), _ = place(encode)(params, pairs, key)
        scale, bias = model.apply({"params": params}, method="scale_and_bias")
        named = {name: batch[name] for name in ("pair_ids", "weights") if name in batch}
        pairwise, metrics = loss(image, text, scale, bias, **named)
        weights = {"weights": batch["weights"]} if "weights" in batch else {}
        caption, caption_metrics = captioning(costs, counts, **weights)
        value = pairwise + weight * caption
        metrics = {"contrastive": jax.lax.stop_gradient(pairwise), **metrics, **caption_metrics}
        return value, {"loss": value, "logit_scale": scale, **metrics}

    return objective


def fused(
    model,
    loss: Callable,
    draw: Callable,
    matching: Callable,
    captioning: Callable | None = None,
    normalize: Callable = lambda images: images,
    *,
    weight: float = 1.0,
    captioning_weight: float = 0.0,
    every: int = 1,
    chunks: int = 1,
    microbatch: Mapping[str, int] | None = None,
    place: Callable = lambda encode: encode,
) -> Objective:
    """The contrastive loss + weight * image-text matching (arXiv:2107.07651) [+ captioning].

    Args:
      model: a `models.FusionEncoder` without answers.
      draw: `losses.draw_negatives` with `every` bound, `matching`: `losses.matching`, `captioning`:
        `losses.captioning`, each with its axis bound or as an island made by `per_shard`; the last
        is None for a model without captions.
      weight, captioning_weight: of the two losses beside the contrastive one.
      every: one row in so many is judged and captioned; it divides the rows of each device. The
        contrastive loss is of all rows, and negatives are drawn from all.
      chunks: as in `contrastive`, but the tokens of all rows are alive, for they are what pairs are
        drawn from.
      microbatch: as in `captioned`; of the judged pairs, three a row, so many rows at a time.
      the others: as in `contrastive`.

    Returns:
      As `contrastive`; the metrics add `contrastive`, `matching`, `matching_accuracy` and, where it
      is trained, `captioning`.
    """
    at_once = dict(microbatch or {}).get("image", 0)

    def in_parts(rows):
        return chunked(microbatched(rows, at_once), chunks)

    def read(module, images, tokens, *, train):
        return module.image_tokens(images, train=train), module.text_tokens(tokens, train=train)

    def encode(params, pairs, key):
        def rows(pairs, key):
            images = normalize(pairs["image"])
            return _apply(model, params, key, images, pairs["text"], method=read)[0]

        return in_parts(rows)(pairs, key), {}

    def fuse(module, images, texts, *, train):
        # Three pairs a row in one pass: its own, one with another text, one with another image.
        image, text = (jax.tree.map(lambda *x: jnp.concatenate(x), *x) for x in (images, texts))
        judged = module.fuse(image, text, train=train).reshape(3, -1).T
        if captioning is None:
            return judged, None
        words = module.write(images[0], texts[0], train=train)
        # Of few rows: logits are the largest thing there is.
        return judged, token_costs(words, texts[0].ids[:, 1:], pad_id=module.text.pad_id)

    def judge(params, drawn, key):
        def rows(drawn, key):
            return _apply(model, params, key, *drawn, method=fuse)[0]

        return in_parts(rows)(drawn, key), {}

    def chosen(tree):
        # Every device's own; a slice with strides could gather them.
        return jax.tree.map(lambda x: x.reshape(-1, every, *x.shape[1:])[:, 0], tree)

    def objective(params, batch, key):
        encode_key, draw_key, judge_key = jax.random.split(key, 3)
        pairs = {name: batch[name] for name in ("image", "text")}
        (image, text), _ = place(encode)(params, pairs, encode_key)
        scale, bias = model.apply({"params": params}, method="scale_and_bias")
        named = {name: batch[name] for name in ("pair_ids", "weights") if name in batch}
        pairwise, metrics = loss(image[0], text[0], scale, bias, **named)
        other_text, other_image, is_drawn = draw(image, text, scale, draw_key, **named)
        own_image, own_text = chosen((image[1], text[1]))
        sides = (own_image, own_image, other_image), (own_text, other_text, own_text)
        (logits, costs), _ = place(judge)(params, sides, judge_key)
        weights = {"weights": chosen(batch["weights"])} if "weights" in batch else {}
        judged, judged_metrics = matching(logits, is_drawn, **weights)
        value = pairwise + weight * judged
        metrics = {"contrastive": jax.lax.stop_gradient(pairwise), **metrics, **judged_metrics}
        if captioning is not None:
            caption, caption_metrics = captioning(*costs, **weights)
            value, metrics = value + captioning_weight * caption, metrics | caption_metrics
        return value, {"loss": value, "logit_scale": scale, **metrics}

    return objective


def answered(
    model,
    answering: Callable,
    normalize: Callable = lambda images: images,
    *,
    chunks: int = 1,
    microbatch: Mapping[str, int] | None = None,
    place: Callable = lambda encode: encode,
) -> Objective:
    """The loss of a model's answers to questions.

    Args:
      model: a `models.FusionEncoder` with answers.
      answering: `losses.answering` with its axis bound, or as an island made by `per_shard`.
      the others: as in `captioned`.

    Returns:
      objective(params, batch, key) -> (value, metrics). The batch holds `image`, `text` (the
      questions), `answers` float32[b, n], the score that each answer would get, and `weights`
      where there are any.
    """
    at_once = dict(microbatch or {}).get("image", 0)

    def encode(params, pairs, key):
        def rows(pairs, key):
            images = normalize(pairs["image"])
            logits, _ = _apply(model, params, key, images, pairs["text"], method="answer")
            return answer_costs(logits, pairs["answers"])

        return chunked(microbatched(rows, at_once), chunks)(pairs, key), {}

    def objective(params, batch, key):
        pairs = {name: batch[name] for name in ("image", "text", "answers")}
        (costs, scores), _ = place(encode)(params, pairs, key)
        weights = {"weights": batch["weights"]} if "weights" in batch else {}
        value, metrics = answering(costs, scores, **weights)
        return value, {"loss": value, **metrics}

    return objective


def _apply(model, params, key, *inputs, method=None):
    """(result in training, new running statistics, an empty dict where there are none)."""
    rngs = {"dropout": key}
    out, updated = model.apply(
        {"params": params}, *inputs, train=True, rngs=rngs, method=method, mutable=[RUNNING]
    )
    return out, updated.get(RUNNING, {})


def freeze(objective: Objective, rules: Sequence[str]) -> Objective:
    """The objective with no gradient to the parameters whose path matches one of the patterns.

    The backward pass of a frozen tower is then never computed; the optimizer has to leave the same
    parameters alone (`make_optimizer(freeze=...)`).
    """
    if not rules:
        return objective

    def frozen(params, batch, key):
        stopped = match_rules([(rule, True) for rule in rules], params, False)
        params = jax.tree.map(
            lambda leaf, stop: jax.lax.stop_gradient(leaf) if stop else leaf, params, stopped
        )
        return objective(params, batch, key)

    return frozen
