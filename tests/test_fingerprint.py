"""Fingerprints: the same on any layout and on the host, and different after any damage."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vlrep_jax import fingerprint
from vlrep_jax.fingerprint import fingerprints, on_device, on_host
from vlrep_jax.parallel import make_mesh

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool")
SPECS = (P(), P("fsdp"), P(None, "fsdp"), P("data", "fsdp"), P(("data", "fsdp")))


def values(dtype, shape=(16, 8)):
    rng = np.random.default_rng(0)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype.startswith(("int", "uint")):
        return rng.integers(0, 100, shape).astype(dtype)
    return rng.normal(size=shape).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_gives_the_hosts_number(dtype):
    x, mesh = values(dtype), make_mesh(2, 4)
    for spec in SPECS:
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        assert fingerprints({"a": {"b": placed}}) == {"a/b": on_host(x)}, spec
    assert fingerprints([jax.device_put(x, jax.devices()[3])]) == {"0": on_host(x)}


def test_scalars_empty_arrays_and_other_ranks():
    for shape in ((), (0,), (3, 0), (1,), (2, 3, 4, 5)):
        x = values("float32", shape)
        assert fingerprints((jnp.asarray(x),)) == {"0": on_host(x)}, shape
    assert on_host(np.zeros((0,), np.float32)) == 0


def test_elements_of_eight_bytes_are_two_words():
    x = np.arange(6, dtype=np.int64).reshape(2, 3) << 33
    assert on_host(x) == on_host(x.reshape(-1).view(np.uint32))
    with jax.enable_x64(True):
        assert fingerprints({"x": jnp.asarray(x)}) == {"x": on_host(x)}


def test_a_number_by_hand():
    """MurmurHash3 makes 0x514E28B7 of 1; the word 0 at place 0 adds nothing."""
    assert on_host(np.array([1], np.uint32)) == 0x514E28B7
    assert on_host(np.array([0], np.uint32)) == 0
    # At place 1 the word that cancels the place's own number is mixed as 0.
    cancelling = np.uint32(2**32 - fingerprint.PLACE)
    assert on_host(np.array([1, cancelling], np.uint32)) == 0x514E28B7


def test_the_host_mixes_long_arrays_in_parts(monkeypatch):
    x = values("float32", (1000,))
    whole = on_host(x)
    monkeypatch.setattr(fingerprint, "CHUNK", 7)
    assert on_host(x) == whole


def test_every_single_bit_shows():
    x = values("float32", (4, 8))
    clean, seen = on_host(x), set()
    for byte, bit in itertools.product(range(x.nbytes), range(8)):
        damaged = np.frombuffer(x.tobytes(), np.uint8).copy()
        damaged[byte] ^= 1 << bit
        seen.add(on_host(damaged.view(np.float32).reshape(x.shape)))
    assert clean not in seen and len(seen) == x.nbytes * 8


def test_damage_that_a_plain_sum_would_not_see():
    x = values("float32", (64,))
    clean = on_host(x)
    for i, j in itertools.combinations(range(8), 2):
        signs, swapped = x.copy(), x.copy()
        signs[[i, j]] *= -1  # odd weights of a sum cancel here: twice 2^31
        swapped[[i, j]] = x[[j, i]]
        assert clean not in (on_host(signs), on_host(swapped))
    zeroed = x.copy()
    zeroed[16:32] = 0
    assert clean not in (on_host(zeroed), on_host(np.roll(x, 1)), on_host(x[:-1]))
    assert on_host(np.zeros(4, np.float32)) != on_host(np.array([0, -0.0, 0, 0], np.float32))


def test_each_device_sums_its_own_part_and_no_array_moves():
    placed = jax.device_put(values("float32"), NamedSharding(make_mesh(2, 4), P("fsdp")))
    parts = fingerprint._own_parts(placed)
    # Four parts on two devices each: every part is counted once, where it is.
    assert len(parts) == 4 and len({d for part in parts for d in part.devices()}) == 4
    block = placed.addressable_shards[0].data
    program = on_device.lower(block, np.zeros(2, np.uint32), (8, 1)).compile()
    assert not any(word in program.as_text() for word in ("all-", "collective", "reduce-scatter"))
    # One word of result, and no copy of the array beside it.
    assert program.memory_analysis().output_size_in_bytes == 4


@pytest.mark.parametrize("dtype", [np.complex64, ml_dtypes.int4])
def test_what_has_no_words_is_refused(dtype):
    with pytest.raises(TypeError, match="There is no fingerprint of"):
        on_host(np.zeros(2, dtype))
