"""Attention by heads, in the plain form and by the kernels that platforms have for it.

attend(query [b, n, h, d], key, value [b, m, h, d], mask, causal) -> [b, n, h, d], in every form the
same values up to rounding: logits <query, key> / sqrt(d) and their softmax are float32. `mask`
bool[b, 1, 1, m] is true where a key may be seen, or None; `causal` hides later positions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def xla(query, key, value, mask, causal):
    """Matrices of all pairs of positions, left to the compiler. On every platform."""
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=causal, implementation="xla"
    )


def cudnn(query, key, value, mask, causal):
    """cuDNN's fused kernel: NVIDIA GPUs from Ampere on, computation in bfloat16 or float16."""
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"attention='cudnn' computes in bfloat16, not {query.dtype}: set dtype='bfloat16' in "
            "the towers, or attention='xla'."
        )
    try:
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=causal, implementation="cudnn"
        )
    except RuntimeError as error:  # no cuDNN here, or none for these shapes
        raise ValueError(
            f"attention='cudnn' cannot be used here ({error}); 'xla' works everywhere."
        ) from error


def flash(query, key, value, mask, causal):
    """jax's Pallas kernel for TPUs (arXiv:2205.14135): no matrix of all pairs leaves the chip.

    It works on blocks of 128 positions: others are padded, at 197 patches by 30 %.
    """
    # Not at the top: Pallas takes a second to import, and few programs need it.
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    rows, positions, depth = query.shape[0], query.shape[1], query.shape[-1]
    keys = key.shape[1]
    seen = jnp.ones((rows, keys), bool) if mask is None else mask[:, 0, 0]

    def padded(x):
        """[b, n, ...] with n up to the next multiple of the block."""
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK)) + ((0, 0),) * (x.ndim - 2))

    by_head = [padded(x).swapaxes(1, 2) for x in (query, key, value)]
    # Queries look only at keys of their own segment: 1 is what is there and may be seen. Padded
    # queries look at everything else, so that none is left without a key.
    segments = kernel.SegmentIds(
        q=padded(jnp.ones((rows, positions), jnp.int32)), kv=padded(seen.astype(jnp.int32))
    )
    blocks = kernel.BlockSizes(
        **dict.fromkeys(kernel.BlockSizes.__dataclass_fields__, BLOCK) | {"block_b": 1}
    )
    out = kernel.flash_attention(
        *by_head,
        segment_ids=segments,
        causal=causal,
        sm_scale=depth**-0.5,
        block_sizes=blocks,
    )
    return out.swapaxes(1, 2)[:, :positions]


BLOCK = 128  # positions; the width of a TPU's vector and matrix units

# Which is fastest on a chip has to be measured there; none of the kernels has been, so far.
ATTENTIONS: dict[str, Callable] = {"xla": xla, "cudnn": cudnn, "flash": flash}
