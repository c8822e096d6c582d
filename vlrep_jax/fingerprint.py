"""Fingerprints: one uint32 of an array's bits, which tells a restored state from a rotten one.

Every 32-bit word is mixed with its place in the whole array, and the mixed words are summed modulo
2^32. A sum needs no order: a split array is summed where its parts lie, and any layout gives the
same number. The mixing is one-to-one, so one changed word always shows; several cancel by chance
only, once in 2^32. (Words weighted by odd numbers would not do: two flipped signs cancel.)
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vlrep_jax.rules import path_of

# MurmurHash3's last step (Appleby, public domain), and 2^32 over the golden ratio for the place.
PLACE, FIRST, SECOND = 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35
CHUNK = 1 << 20  # words that NumPy mixes at a time: a few copies of 4 MiB, however large the array
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # by bytes of an element


def fingerprints(tree) -> dict[str, int]:
    """{path: fingerprint} of a tree of jax.Arrays laid out over any devices and processes.

    Each device sums what it holds and only the sums are brought together, by the host: no array
    leaves its device, and nothing waits for another device. Every process of a run has to call it
    at the same point; of an array that is whole on a process it tells that process's own copy.

    Raises:
      TypeError: a leaf's elements are of no size that `WORDS` knows.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    parts = [_own_parts(leaf) for _, leaf in leaves]
    sums = [sum(map(int, own)) % 2**32 for own in jax.device_get(parts)]
    scattered = [i for i, (_, leaf) in enumerate(leaves) if not _is_whole_here(leaf)]
    if scattered:
        own = np.array([sums[i] for i in scattered], np.uint32)
        totals = multihost_utils.process_allgather(own).sum(axis=0, dtype=np.uint32)
        for i, total in zip(scattered, totals, strict=True):
            sums[i] = int(total)
    return {path_of(path): value for (path, _), value in zip(leaves, sums, strict=True)}


def _is_whole_here(x):
    return x.is_fully_addressable or x.is_fully_replicated


def _own_parts(x):
    """uint32[] on its device for each part of an array that this process has to count, once."""
    parts = x.addressable_shards
    if _is_whole_here(x):  # copies are told by what they cover, which may be called by any copy
        parts = {str(part.index): part for part in parts}.values()
    else:
        parts = [part for part in parts if part.replica_id == 0]
    strides = tuple(math.prod(x.shape[dim + 1 :]) % 2**32 for dim in range(x.ndim))
    return [on_device(part.data, _start(part.index), strides) for part in parts]


def _start(index):
    return np.array([dim.start or 0 for dim in index], np.uint32)


@partial(jax.jit, static_argnums=2)
def on_device(x: jax.Array, start: np.ndarray, strides: tuple[int, ...]) -> jax.Array:
    """uint32[]: what a block of an array adds to the array's fingerprint.

    Args:
      x: the block, on one device.
      start: uint32[x.ndim], where it begins in the array.
      strides: of the array, in elements, modulo 2^32.
    """
    words = jax.lax.bitcast_convert_type(_unsigned(x, jnp), _word_type(x.dtype))
    words, place = words.astype(jnp.uint32), jnp.zeros((1,) * x.ndim, jnp.uint32)
    for dim, stride in enumerate(strides):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim) + start[dim]
        place = place + index * jnp.uint32(stride)
    if words.ndim > x.ndim:  # elements of 8 bytes are two words each, in a last dimension
        low = jax.lax.broadcasted_iota(jnp.uint32, words.shape, x.ndim)
        place = place[..., None] * jnp.uint32(2) + low
    return jnp.sum(_mixed(words, place), dtype=jnp.uint32)


def on_host(x: np.ndarray) -> int:
    """The fingerprint of an array in the host's memory; errors as `fingerprints`."""
    x = np.ascontiguousarray(x).reshape(-1)
    words, total = _unsigned(x, np).view(_word_type(x.dtype)), 0
    for start in range(0, words.size, CHUNK):
        part = words[start : start + CHUNK].astype(np.uint32)
        place = np.arange(start, start + part.size, dtype=np.uint64).astype(np.uint32)
        total += int(_mixed(part, place).sum(dtype=np.uint64))
    return total % 2**32


def _mixed(words, place):
    """uint32 words made to depend on their place, each one-to-one; NumPy's or JAX's."""
    mixed = words + place * np.uint32(PLACE)
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(FIRST)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(SECOND)
    return mixed ^ (mixed >> np.uint32(16))


def _unsigned(x, numpy):
    """Booleans as bytes: they have no bits to cast."""
    return x.astype(numpy.uint8) if x.dtype == bool else x


def _word_type(dtype):
    size = np.dtype(dtype).itemsize
    if size not in WORDS or np.dtype(dtype).kind == "c" or np.dtype(dtype).name.endswith("int4"):
        raise TypeError(f"There is no fingerprint of {dtype}; keep state in 8 to 64-bit numbers.")
    return WORDS[size]
