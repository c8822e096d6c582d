"""Clips: any image tower on every frame, and a pool over time."""

import flax.linen as nn
from flax.linen.initializers import normal

from vlrep_jax.models.transformer import Tower, projection

POOLS = ("mean", "transformer")


class Video(Tower):
    """Clips float32[b, t, s, s, 3] -> features [b, embed_dim].

    Attributes:
      frame: an image tower without embed_dim, called on all frames.
      frames: t.
      pool: 'mean' over the frames, which sees no order; or 'transformer', layers over the frames'
        features with learned positions, then the mean (as CLIP4Clip's seqTransf,
        arXiv:2104.08860).
      width, depth, heads and so on: of those layers, see `Tower`; the width is the frame's.
      embed_dim: width of the output, by a linear map without bias; None is the frame's width.

    Raises:
      ValueError: clips of another shape, or an unknown pool.
    """

    frame: nn.Module = None
    frames: int = 8
    depth: int = 2
    pool: str = "transformer"
    embed_dim: int | None = None

    @property
    def image_size(self):
        """Pixels of a frame's side."""
        return self.frame.image_size

    @nn.compact
    def __call__(self, clips, *, train=False):
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r}; known: {', '.join(POOLS)}.")
        if clips.ndim != 5 or clips.shape[1] != self.frames:
            raise ValueError(
                f"Clips have shape {clips.shape}; this tower expects (batch, {self.frames}, "
                f"{self.image_size}, {self.image_size}, 3). Take as many frames, or set frames."
            )
        rows = self.frame(clips.reshape(-1, *clips.shape[2:]), train=train)
        x = rows.reshape(len(clips), self.frames, -1)
        if self.pool == "transformer":
            if x.shape[-1] != self.width:
                raise ValueError(
                    f"width={self.width}, but the frame's features have {x.shape[-1]}."
                )
            std = self.width**-0.5
            positions = self.param("positional_embedding", normal(std), (self.frames, self.width))
            x = x.astype(self.dtype) + positions.astype(self.dtype)[None]
            x = self.layers()(x, train=train)
            x = nn.LayerNorm(epsilon=self.ln_eps, dtype=self.dtype, name="ln_post")(x)
        x = x.mean(axis=1)
        if self.embed_dim is not None:
            x = projection(self.embed_dim, dtype=self.dtype, width=x.shape[-1])(x)
        return x
