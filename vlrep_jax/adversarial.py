"""The objective of a generator and a discriminator that train at once (arXiv:1406.2661).

One function of all parameters, so that the step, its checkpoints, metrics and moving average are
those of any other training: each side's loss sees the other's parameters without a gradient.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from vlrep_jax.augment import random_colour, random_cut, random_views
from vlrep_jax.collectives import global_mean
from vlrep_jax.models.transformer import l2_normalize
from vlrep_jax.objectives import Objective


def hinge(real, fake):
    """Costs of a discriminator's scores, and of the generator's: (of real, of fake, generator's).

    As in BigGAN (arXiv:1809.11096), each float[...] like its scores.
    """
    return jax.nn.relu(1 - real), jax.nn.relu(1 + fake), -fake


def nonsaturating(real, fake):
    """Those of logistic regression, with the generator's form that does not saturate."""
    return jax.nn.softplus(-real), jax.nn.softplus(fake), jax.nn.softplus(-fake)


def adversarial(
    costs: Callable,
    model,
    axis_name: str | None = None,
    *,
    reconstruction: float = 10.0,
    r1: float = 0.1,
    text_noise: float = 0.3,
    cut: float = 0.3,
) -> Objective:
    """The objective of a `models.TextToImage` whose towers are not trained.

    Args:
      costs: `hinge` or `nonsaturating`.
      model: made by `models.create`.
      axis_name: mapped axis that splits the batch; None where it is whole.
      reconstruction: weight of the mean absolute difference of the generated picture to the one
        that its caption is of. Few pictures in few steps teach more by it than by a discriminator.
      r1: weight of the squared gradient of the discriminator at real pictures, half of it
        (arXiv:1801.04406), over a quarter of the rows.
      text_noise: length of the noise added to texts, whose length is 1, so that the generator
        meets texts between those of the data.
      cut: see `augment.random_cut`; discriminators see pictures moved, recoloured and cut
        (arXiv:2006.10738).
    """

    def objective(params, batch, key):
        keys = jax.random.split(key, 4)
        real = batch["image"].astype(jnp.float32) / 255
        rows = len(real)
        text = model.apply({"params": params}, batch["text"], method="encode_text")
        text = jax.lax.stop_gradient(text)
        blur = jax.random.normal(keys[0], text.shape) * text_noise * text.shape[-1] ** -0.5
        text = l2_normalize(text + blur)
        noise = jax.random.normal(keys[1], (rows, model.generator.noise_dim))
        fake = model.apply({"params": params}, noise, text, method="draw")

        def seen(images):
            images = random_views(keys[2], images, images.shape[1], shear=0.0, zoom=(0.9, 1.1))
            images = random_colour(keys[3], images, 0.1, 0.2)
            return random_cut(keys[3], images, cut) if cut else images

        def judge(images, text, params=params):
            return model.apply({"params": params}, images, text, method="judge")

        # A real picture with another's caption is wrong too (arXiv:1605.05396).
        both = judge(seen(real), jnp.stack([text, jnp.roll(text, 1, axis=0)]))
        of_real, of_fake, _ = costs(both[0], judge(seen(jax.lax.stop_gradient(fake)), text))
        of_wrong = costs(both[0], both[1])[1]
        fixed = {**params, "discriminator": jax.lax.stop_gradient(params["discriminator"])}
        of_generator = costs(both[0], judge(seen(fake), text, fixed))[2]
        few = max(rows // 4, 1)
        slope = jax.grad(lambda images: judge(images, text[:few]).sum())(real[:few])
        terms = {
            "discriminator": of_real + (of_fake + of_wrong) / 2,
            "generator": of_generator,
            "reconstruction": jnp.abs(fake - real).mean((1, 2, 3)),
            "r1": (slope**2).sum((1, 2, 3)) / 2,
        }
        means = global_mean({name: term.mean() for name, term in terms.items()}, axis_name)
        value = means["discriminator"] + means["generator"]
        value = value + reconstruction * means["reconstruction"] + r1 * means["r1"]
        return value, {"loss": value} | jax.lax.stop_gradient(means)

    return objective


# name -> (model, axis_name, **options) -> objective of a `models.TextToImage`.
ADVERSARIAL: dict[str, Callable[..., Objective]] = {
    "hinge_gan": partial(adversarial, hinge),
    "nonsaturating_gan": partial(adversarial, nonsaturating),
}
