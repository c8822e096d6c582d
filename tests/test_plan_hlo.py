"""The reader of compiled programs: real programs of eight CPU devices, and pieces of TPU text."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from vlrep_jax import models
from vlrep_jax.parallel import make_mesh
from vlrep_jax.plan import flops, hlo


def island(fn, x, *, out=None, **sizes):
    """The compiled program of `fn` on each device's rows of float32[x]."""
    mesh = make_mesh(devices=jax.devices()[:8], **sizes)
    rows = P(("data", "fsdp"))
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=rows, out_specs=out or P(), check_vma=False)
    shape = jax.ShapeDtypeStruct(x, jnp.float32)
    return hlo.parse(jax.jit(mapped).lower(shape).compile().as_text())


def found(program):
    return [(c.kind, c.times, c.bytes) for c in hlo.collectives(program)]


ALL = ("data", "fsdp")


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: lax.psum(x, ALL), ("all-reduce", 1, 2 * 3 * 4)),
        (lambda x: lax.all_gather(x, ALL, tiled=True), ("all-gather", 1, 16 * 3 * 4)),
        (lambda x: lax.ppermute(x, ALL, [(0, 1), (1, 0)]), ("collective-permute", 1, 2 * 3 * 4)),
        (
            lambda x: lax.psum_scatter(jnp.tile(x, (8, 1)), ALL, tiled=True),
            ("reduce-scatter", 1, 16 * 3 * 4),
        ),
    ],
    ids=["all-reduce", "all-gather", "permute", "reduce-scatter"],
)
def test_bytes_are_those_of_the_whole_array(fn, expected):
    """Two rows of three float32 on each of 8 devices."""
    assert found(island(fn, (16, 3), out=P(ALL))) == [expected]


def test_a_loop_s_collectives_count_as_often_as_it_runs():
    def fn(x):
        inner = lambda c, _: (lax.psum(jnp.sin(c), ALL), None)  # noqa: E731
        outer = lambda c, _: (lax.scan(inner, c, None, length=5)[0] + 1, None)  # noqa: E731
        return lax.scan(outer, lax.psum(x, ALL), None, length=3)[0]

    assert sorted(found(island(fn, (16, 3)))) == [("all-reduce", 1, 24), ("all-reduce", 15, 24)]


def test_of_a_conditional_the_branch_with_collectives_counts():
    def fn(x):
        gathered = lambda x: lax.all_gather(x, ALL, tiled=True).sum()  # noqa: E731
        return lax.cond(lax.psum(x, ALL).sum() > 0, jnp.sum, gathered, x)

    assert ("all-gather", 1, 16 * 3 * 4) in found(island(fn, (16, 3)))


@pytest.mark.parametrize(
    ("axis", "group"),
    [("fsdp", (0, 1)), ("data", (0, 2, 4, 6)), (ALL, (0, 1, 2, 3, 4, 5, 6, 7))],
)
def test_the_group_is_the_axis_s(axis, group):
    program = island(lambda x: lax.psum(x, axis), (16, 3), out=P(ALL), data=4, fsdp=2)
    assert [c.group for c in hlo.collectives(program)] == [group]


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", (0, 4)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("source_target_pairs={{3,0},{0,1}}", (3, 0)),
        ("replica_groups={}", ()),
    ],
)
def test_groups_are_read_in_every_notation(text, group):
    shape = "f32[4]{0:T(128)}"
    text = (
        f"ENTRY %e (p: f32[4]) -> f32[4] {{\n  %r = {shape} all-reduce(%p), {text}, to_apply=%s\n}}"
    )
    assert hlo.collectives(hlo.parse(text))[0].group == group


# What the TPU compiler writes, cut down: an asynchronous gather that repeats in the fusion it
# overlaps with, a reduce-scatter that is a fusion, a loop whose count only its condition knows.
TPU = """
HloModule jit_step, is_scheduled=true

%async_collective_fusion.1 (a: bf16[8,16], g: bf16[4,16]) -> (bf16[8,32], bf16[32,16]) {
  %a = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %g = bf16[4,16]{1,0:T(8,128)(2,1)} parameter(1)
  %all-gather.2 = bf16[32,16]{1,0:T(8,128)(2,1)} all-gather(%g), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %w = bf16[16,32]{1,0:T(8,128)(2,1)} constant({...})
  %convolution.1 = bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%a, %w), dim_labels=bf_io->bf
  ROOT %t = (bf16[8,32]{1,0}, bf16[32,16]{1,0}) tuple(%convolution.1, %all-gather.2)
}

%started (g: bf16[4,16]) -> bf16[32,16] {
  %g = bf16[4,16]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[32,16]{1,0:T(8,128)(2,1)} all-gather(%g), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

%all-reduce-scatter.1 (i: f32[64,16]) -> f32[8,16] {
  %i = f32[64,16]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,16]{1,0:T(8,128)} all-reduce(%i), channel_id=2, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %dynamic-slice.1 = f32[8,16]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %o), dynamic_slice_sizes={8,16}
}

%body (s: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %s = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %fusion.1 = bf16[32,16]{1,0} fusion(%x), kind=kCustom, calls=%started, metadata={op_name="jit(step)/gather"}
  %fusion.2 = (bf16[8,32]{1,0}, bf16[32,16]{1,0}) fusion(%y, %x), kind=kOutput, calls=%async_collective_fusion.1, metadata={op_name="jit(step)/jvp(M)/M.encode_image/image/mlp/fc1/dot_general"}, backend_config={"estimated_cycles":"1000"}
  %async-collective-done.1 = bf16[32,16]{1,0} fusion(%fusion.2), kind=kCustom, calls=%started
  %fusion.3 = f32[8,16]{1,0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1, backend_config={"estimated_cycles":"10"}
  %x = bf16[4,16]{1,0:T(8,128)(2,1)} get-tuple-element(%s), index=1
  %collective-permute-start.1 = (bf16[4,16]{1,0}, bf16[4,16]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, source_target_pairs={{2,3},{3,2}}
  %collective-permute-done.1 = bf16[4,16]{1,0} collective-permute-done(%collective-permute-start.1)
  ROOT %t = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) tuple(%i, %v)
}

%condition (s: (s32[], bf16[8,16])) -> pred[] {
  %s = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %constant.1 = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

ENTRY %main.1_spmd (p: bf16[8,16]) -> bf16[8,16] {
  %p = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %fusion.9 = bf16[8,16]{1,0:T(8,128)(2,1)} fusion(%p), kind=kLoop, calls=%other, backend_config={"estimated_cycles":"7"}
  %while.1 = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) while(%t), condition=%condition, body=%body
  ROOT %r = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}

%other (p: bf16[8,16]) -> bf16[8,16] {
  ROOT %p = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
}
"""  # noqa: E501


def test_tpu_text_is_read_with_its_loop_and_its_asynchronous_collectives():
    program = hlo.parse(TPU)
    assert hlo.total_cycles(program) == 7 + 12 * (1000 + 10)
    assert found(program) == [
        ("all-gather", 12, 32 * 16 * 2),
        ("reduce-scatter", 12, 64 * 16 * 4),
        ("collective-permute", 12, 4 * 16 * 2),
    ]
    assert hlo.collectives(program)[-1].group == (2, 3)
    assert flops.of_program(program) == 12 * 2 * 8 * 16 * 32
    first, cycles = next(iter(hlo.cycles_by_operation(program).items()))
    assert first.endswith("fc1/dot_general") and cycles == 12_000


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("hello")


# FLOPs: FACTS of the published architectures, and products counted by hand.


@pytest.mark.parametrize(
    ("name", "image", "text"),
    [
        ("ViT-B-32", 8.82, 5.96),
        ("ViT-B-16", 35.13, 5.96),
        ("ViT-L-14", 162.03, 13.30),
        ("ViT-B-16-SigLIP", 35.42, 11.02),
    ],
)
def test_forward_flops_are_the_published_ones(name, image, text):
    model = models.create(name, towers={"dtype": "bfloat16", "remat": "full"})
    sides = flops.forward(model, models.image_shape(model), models.input_sizes(model)[1])
    assert round(sides["image"] / 1e9, 2) == image and round(sides["text"] / 1e9, 2) == text


def test_dropped_patches_cost_nothing():
    whole, half = (
        flops.forward(models.create("ViT-B-16", image={"patch_keep": keep}), (224, 224, 3), 77)[
            "image"
        ]
        for keep in (1.0, 0.5)
    )
    assert 0.4 < half / whole < 0.52


def test_products_count_as_often_as_loops_run():
    def loss(w, x):
        return jnp.sum(lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=6)[0])

    w, x = jax.ShapeDtypeStruct((16, 16), jnp.float32), jax.ShapeDtypeStruct((4, 16), jnp.float32)
    forward = 6 * 2 * 4 * 16 * 16
    assert flops.of_jaxpr(jax.make_jaxpr(loss)(w, x).jaxpr) == forward
    for fn, times in ((loss, 1), (jax.grad(loss, argnums=(0, 1)), 3)):
        program = hlo.parse(jax.jit(fn).lower(w, x).compile().as_text())
        assert flops.of_program(program) == times * forward


@pytest.mark.parametrize(
    ("line", "expected"),
    [  # (output) convolution(lhs, rhs), as the TPU compiler writes: a product of matrices,
        ("[8,32] [8,16] [16,32] dim_labels=bf_io->bf", 2 * 8 * 16 * 32),
        # of every position and head,
        ("[4,5,6] [4,5,7] [1,7,6] window={size=1}, dim_labels=b0f_0io->b0f", 2 * 4 * 5 * 6 * 7),
        # batched, where the batch is a dilated dimension and nearly every tap meets a hole,
        (
            "[3,2,9,9] [3,9,2,5] [3,9,2,5] window={size=3x2 stride=2x1 lhs_dilate=3x2}, "
            "dim_labels=0b1f_0o1i->01bf",
            2 * 3 * 2 * 9 * 9 * 5,
        ),
        # of heads that are put side by side, where padding is met by nothing,
        (
            "[9,7,3,4] [9,7,12,1] [12,3,4,1] window={size=1x3 pad=0_0x2_2 rhs_reversal=0x1}, "
            "dim_labels=0bf1_i1o0->0b1f",
            2 * 9 * 7 * 12 * 3 * 4,
        ),
        # and a picture's: 3 x 3 taps at stride 2 over 6 x 6 pixels padded by one on one side.
        (
            "[1,3,3,8] [1,6,6,5] [3,3,5,8] window={size=3x3 stride=2x2 pad=0_1x0_1}, "
            "dim_labels=b01f_01io->b01f",
            2 * 8 * 5 * 8 * 8,
        ),
    ],
)
def test_convolutions_count_what_meets_an_input(line, expected):
    out, lhs, rhs, options = line.split(" ", 3)
    text = f"""ENTRY %e (p: f32[1]) -> f32[1] {{
        %l = f32{lhs}{{0}} parameter(0)
        %r = f32{rhs}{{0}} parameter(1)
        %c = f32{out}{{0}} convolution(%l, %r), {options}
    }}"""
    assert flops.of_program(hlo.parse(text)) == expected
