"""What pictures are driven to: a text, or along the direction between two texts, as models see it.

A `Guide` is one or several trained models that look at a picture together, through random views.
Several agree on what is in a picture more than on what only deceives one of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlrep_jax.augment import random_blur, random_colour, random_cut, random_views
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.guidance.pixels import normalized, squared

_EPS = 1e-12
_MOST = 1e6  # of a weight


class Target(NamedTuple):
    """A loss of pictures.

    loss: (arrays, images float[n, h, w, 3], key) -> (float[n], {name: float[n]}); what a `Guide`
      makes of the same kind has the same function, so that it is compiled once.
    arrays: parameters, embeddings and weights that it reads.
    """

    loss: Callable
    arrays: Any


@dataclass(frozen=True)
class Views:
    """How a picture is looked at in each step.

    Attributes:
      count: views of each picture by each model.
      zoom, shift, shear: see `augment.random_views`.
      blur: largest width of a Gaussian, in pixels of a model whose pictures have 48.
      noise: largest standard deviation of noise that is added.
      brightness, contrast: see `augment.random_colour`.
      cut: share of the side of a square that is blanked.
    """

    count: int = 6
    zoom: tuple[float, float] = (0.8, 1.3)
    shift: float = 0.08
    shear: float = 0.12
    blur: float = 1.5
    noise: float = 0.15
    brightness: float = 0.05
    contrast: float = 0.15
    cut: float = 0.3

    def __call__(self, key, images, preprocess: Preprocess):
        """float[n, h, w, 3] -> float[count * n, size, size, 3] as a model's tower takes them."""
        size, keys = preprocess.size, jax.random.split(key, 6)
        # A larger canvas keeps its details for views that zoom in.
        side = max(size, min(round(size * max(self.zoom)), *images.shape[1:3]))
        seen = jnp.tile(squared(images, preprocess, side), (self.count, 1, 1, 1))
        seen = random_views(keys[0], seen, size, zoom=self.zoom, shift=self.shift, shear=self.shear)
        seen = random_cut(keys[1], seen, self.cut)
        seen = random_blur(keys[2], seen, self.blur * size / 48)
        seen = random_colour(keys[3], seen, self.brightness, self.contrast)
        strength = jax.random.uniform(keys[4], (len(seen), 1, 1, 1), maxval=self.noise)
        seen = seen + strength * jax.random.normal(keys[5], seen.shape, seen.dtype)
        return normalized(seen, preprocess)


@dataclass(frozen=True)
class Guide:
    """Models that judge pictures together.

    Attributes:
      models: as `weights.load` gives them, each with its tokenizer. Any dual encoder will do.
      views: how they look.
    """

    models: Sequence
    views: Views = field(default_factory=Views)

    def toward(
        self,
        texts: Sequence[str],
        others: Sequence[str] = (),
        *,
        others_weight: float = 0.1,
        smooth: float = 0.1,
    ) -> Target:
        """Pictures that show texts.

        The loss of picture i is the mean over models and views of 1 - cos to texts[i], plus the
        model's own loss of that text among `others`: cross-entropy, or the sigmoid of each pair
        where the model has a bias (SigLIP), plus the total variation.

        Args:
          texts: one a picture.
          others: what the pictures are not to show.
          others_weight: of the model's own loss.
          smooth: of the mean absolute difference of neighbouring pixels.

        Raises:
          ValueError: a text is empty, or a model has no tokenizer.
        """
        _check_texts([*texts, *others])
        wanted = [[text, *others] for text in texts]
        distinct = sorted({text for row in wanted for text in row})
        places = np.array([[distinct.index(text) for text in row] for row in wanted])
        text = [model.encode_text(distinct)[places] for model in self.models]
        arrays = {
            "params": [model.params for model in self.models],
            "text": text,
            "others_weight": jnp.float32(others_weight),
            "smooth": jnp.float32(smooth),
        }
        return Target(self._toward, arrays)

    @cached_property
    def _toward(self):
        def loss(arrays, images, key):
            costs, cosines = [], []
            embedded = self._embed(arrays["params"], images, key)
            for image, text, (scale, bias) in zip(
                embedded, arrays["text"], self._scales(arrays["params"]), strict=True
            ):
                cosine = jnp.einsum("vnd,ntd->vnt", image, text)
                own = _own_loss(cosine, scale, bias)
                costs.append((1 - cosine[..., 0] + arrays["others_weight"] * own).mean(0))
                cosines.append(cosine[..., 0].mean(0))
            value = sum(costs) / len(costs) + arrays["smooth"] * total_variation(images)
            return value, {"cosine": sum(cosines) / len(cosines)}

        return loss

    def along(
        self,
        originals,
        source: str,
        target: str,
        *,
        strength: float = 1.0,
        closeness: float = 2.0,
        smooth: float = 0.05,
    ) -> Target:
        """Originals changed as a text changes from `source` to `target`.

        The directional loss (arXiv:2108.00946): 1 - cos between the change of the picture's
        embedding, both seen in the same view, and that of the text's. The cosine's length of the
        former is sqrt(|change|^2 + |text change|^2), so that a change too small to see scores low
        and none has a gradient.

        Args:
          originals: float[n, h, w, 3] in [0, 1].
          strength: of the directional loss; 0 leaves the originals as they are.
          closeness: of the mean squared difference to them.
          smooth: of the total variation of the difference.

        Raises:
          ValueError: a text is empty, the two are the same to a model, or it has no tokenizer; or
            as `check_weights`.
        """
        _check_texts([source, target])
        check_weights(strength=strength, closeness=closeness, smooth=smooth)
        steps = []
        for model in self.models:
            before, after = model.encode_text([source, target])
            if np.linalg.norm(after - before) < 1e-4:
                raise ValueError(f"{source!r} and {target!r} are the same to the model.")
            steps.append(after - before)
        arrays = {
            "params": [model.params for model in self.models],
            "step": steps,
            "originals": jnp.asarray(originals, jnp.float32),
            "strength": jnp.float32(strength),
            "closeness": jnp.float32(closeness),
            "smooth": jnp.float32(smooth),
        }
        return Target(self._along, arrays)

    @cached_property
    def _along(self):
        def loss(arrays, images, key):
            originals = jnp.broadcast_to(arrays["originals"], images.shape)
            # The same key: the same views.
            now = self._embed(arrays["params"], images, key)
            before = self._embed(arrays["params"], originals, key)
            cosines = [
                directional_cosine(new - jax.lax.stop_gradient(old), step[None, None]).mean(0)
                for new, old, step in zip(now, before, arrays["step"], strict=True)
            ]
            cosine = sum(cosines) / len(cosines)
            change = images - originals
            distance = (change**2).mean((1, 2, 3))
            value = arrays["strength"] * (1 - cosine) + arrays["closeness"] * distance
            value = value + arrays["smooth"] * total_variation(change)
            return value, {"cosine": cosine, "distance": jnp.sqrt(distance)}

        return loss

    def _embed(self, params, images, key):
        """float[views, n, d] of each model."""
        rows = []
        for i, (model, own) in enumerate(zip(self.models, params, strict=True)):
            seen = self.views(jax.random.fold_in(key, i), images, model.preprocess)
            image = model.model.apply({"params": own}, seen, method="encode_image")
            rows.append(image.reshape(self.views.count, len(images), -1))
        return rows

    def _scales(self, params):
        return [
            model.model.apply({"params": own}, method="scale_and_bias")
            for model, own in zip(self.models, params, strict=True)
        ]


def check_weights(**weights):
    """Raises ValueError where one, given by its name, is no number from 0 to a million."""
    for name, value in weights.items():
        if not 0 <= value <= _MOST:  # nor NaN
            raise ValueError(f"{name}={value} must be a number from 0 to {_MOST:,.0f}.")


def directional_cosine(change, step):
    """<change, step> / (|step| sqrt(|change|^2 + |step|^2)): 0 without a change, at most 1."""
    squared_step = (step**2).sum(-1)
    length = jnp.sqrt(squared_step * ((change**2).sum(-1) + squared_step) + _EPS)
    return (change * step).sum(-1) / length


def total_variation(images):
    """Mean absolute difference of neighbouring pixels of each picture, float[n].

    Of a picture one pixel wide or high, whose pixels have no neighbour on that side, it is 0 there.
    """
    down, right = images[:, 1:] - images[:, :-1], images[:, :, 1:] - images[:, :, :-1]
    return sum(_magnitude(x).sum((1, 2, 3)) / max(x[0].size, 1) for x in (down, right))


def _magnitude(x):
    """|x| with the slope 0 at 0, where that of `jnp.abs` is 1."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def _own_loss(cosine, scale, bias):
    """The model's own loss of a picture against texts [..., t], of which the first is its own."""
    logits = scale * cosine + (0.0 if bias is None else bias)
    if bias is None:
        return jax.nn.logsumexp(logits, axis=-1) - logits[..., 0]
    own, others = jax.nn.softplus(-logits[..., 0]), jax.nn.softplus(logits[..., 1:])
    return own + others.sum(-1)


def _check_texts(texts):
    for text in texts:
        if not str(text).strip():
            raise ValueError("A text is empty; write what the picture is to show.")
