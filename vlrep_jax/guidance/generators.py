"""Differentiable generators: a latent, any pytree of arrays, to pictures. GENERATORS lists them.

The direct ones hold the picture itself in coordinates in which descent draws smooth shapes before
it draws dots: by scales (`laplacian`) or by frequencies (`fourier`), both with colours along the
axes in which those of pictures vary apart from each other.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlrep_jax.guidance.pixels import clamped
from vlrep_jax.models import TextToImage
from vlrep_jax.models.transformer import l2_normalize

# Light and dark, blue against yellow, red against green: the principal axes of natural colours
# (Ruderman, Cronin and Chiao, JOSA A 15, 2036, 1998), each the shorter the less colours vary on it.
_AXES = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
COLOURS = np.float32(_AXES * np.array([[1.0], [0.5], [0.4]]))


class Generator(NamedTuple):
    """What `guide` descends through.

    init: (key, texts) -> latent, a row of each leaf for each text.
    decode: (arrays, latent) -> float[n, h, w, 3] in [0, 1]; compiled once for the same function.
    arrays: what `decode` reads beside the latent, such as parameters.
    rate: learning rate of Adam that suits the latent.
    """

    init: Callable
    decode: Callable
    arrays: Any
    rate: float


def laplacian(
    height: int,
    width: int,
    *,
    background=1.0,
    mask=None,
    sizes: Sequence[Sequence[int]] | None = None,
    noise: float = 0.01,
    gain: float = 2.0,
    rate: float = 0.05,
) -> Generator:
    """A sum of pictures of half the size each, enlarged smoothly (a Laplacian pyramid).

    Args:
      height, width: pixels of the picture.
      background: what the latent 0 decodes to: a level, or float[height, width, 3].
      mask: float[height, width], how much of a change each pixel takes; None is 1 everywhere.
      sizes: (height, width) of each of them; None is `pyramid(height, width)`.
      noise: standard deviation of the first latent. 0 begins at the background.
      gain: each scale counts so many times as much as the next finer one.
    """
    sizes = pyramid(height, width) if sizes is None else sizes
    weights = gain ** np.arange(len(sizes))
    weights = weights / np.sqrt((weights**2).sum())

    def init(key, texts):
        keys = jax.random.split(key, len(sizes))
        return tuple(
            noise * jax.random.normal(key, (len(texts), *size, 3))
            for key, size in zip(keys, sizes, strict=True)
        )

    def spread(latent):
        shape = (len(latent[0]), height, width, 3)
        enlarged = (jax.image.resize(level, shape, "cubic") for level in latent)
        return sum(float(w) * level for w, level in zip(weights, enlarged, strict=True))

    return Generator(init, _direct(spread), _around(background, mask), rate)


def pyramid(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes of a picture and of its halves, down to a longer side of 3 pixels."""
    sizes = [(height, width)]
    while max(sizes[-1]) >= 6:
        sizes.append(tuple(max(side // 2, 1) for side in sizes[-1]))
    return sizes


def fourier(
    height: int,
    width: int,
    *,
    background=1.0,
    mask=None,
    noise: float = 0.01,
    decay: float = 1.5,
    rate: float = 0.02,
) -> Generator:
    """A spectrum whose amplitudes fall with frequency as those of pictures do.

    Args:
      height, width, background, mask, noise: see `laplacian`.
      decay: power of the frequency by which amplitudes are divided; 1 is that of natural pictures.
    """
    rows, columns = np.fft.fftfreq(height), np.fft.rfftfreq(width)
    frequency = np.hypot(rows[:, None], columns[None])
    frequency = np.maximum(frequency, 1 / max(height, width))
    falling = np.float32(frequency**-decay / np.sqrt(np.mean(frequency ** (-2 * decay))))

    def init(key, texts):
        return noise * jax.random.normal(key, (len(texts), *falling.shape, 2, 3))

    def spread(latent):
        spectrum = falling[None, :, :, None] * jax.lax.complex(latent[..., 0, :], latent[..., 1, :])
        return jnp.fft.irfft2(spectrum, (height, width), axes=(1, 2), norm="ortho")

    return Generator(init, _direct(spread), _around(background, mask), rate)


def _around(background, mask):
    """What a direct generator adds its latent to."""
    shape = (1, *np.shape(background)) if np.ndim(background) else (1, 1, 1, 1)
    mask = (
        jnp.ones((1, 1, 1, 1)) if mask is None else jnp.asarray(mask, jnp.float32)[None, ..., None]
    )
    return {"background": jnp.asarray(background, jnp.float32).reshape(shape), "mask": mask}


def _direct(spread):
    """decode(arrays, latent) of a way to spread a latent over pixels, zero to zero."""

    def decode(arrays, latent):
        change = jnp.einsum("nhwa,ac->nhwc", spread(latent), COLOURS)
        # Where nothing is added the background stays bit for bit what it was.
        return clamped(arrays["background"] + arrays["mask"] * change)

    return decode


def learned(pretrained, *, rate: float = 0.01) -> Generator:
    """The generator of a trained GAN; its latent is noise and a text embedding, both free to move.

    Args:
      pretrained: as `weights.load` gives it, of a run of `configs/generator_gan.py`.
      rate: a step's length in each coordinate, of which both kinds have about 1. Descent that goes
        far from where it begins leaves what the generator has learned to draw.

    Raises:
      ValueError: it is a model without a generator.
    """
    model = pretrained.model
    if not isinstance(model, TextToImage):
        raise ValueError(
            f"A generator is one of {', '.join(GENERATORS)}, or a run of configs/generator_gan.py; "
            f"this is a {type(model).__name__}, which draws nothing."
        )

    def init(key, texts):
        noise = jax.random.normal(key, (len(texts), model.generator.noise_dim))
        text = jnp.asarray(pretrained.encode_text(texts))
        return {"noise": noise, "text": text * text.shape[-1] ** 0.5}

    def decode(params, latent):
        text = l2_normalize(latent["text"])
        return model.apply({"params": params}, latent["noise"], text, method="draw")

    return Generator(init, decode, pretrained.params, rate)


# laplacian and fourier: (height, width, **options); learned: a trained model.
GENERATORS: dict[str, Callable[..., Generator]] = {
    "fourier": fourier,
    "laplacian": laplacian,
    "learned": learned,
}
