"""What each loss costs on a pod, forward and backward, compiled ahead of time: no TPU is needed.

    python benchmarks/losses.py --topology=v5e:16x16 --sizes=32768,131072,1048576

Prints a table in Markdown. est: the compiler's cycles over the clock, without collectives. temp:
buffers besides arguments and results, without the on-chip memory; peak: all of the device's memory
at the fullest moment. moved: bytes of a collective's whole array, times how often it runs.
"""

import argparse
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the TPU is a compiler here, no device

from importlib.metadata import version

import jax
import jax.numpy as jnp

from vlrep_jax import plan
from vlrep_jax.build import find
from vlrep_jax.losses import LOSSES
from vlrep_jax.parallel import batch_sharding, make_mesh, per_shard, replicated
from vlrep_jax.plan import hlo

FORMS = "softmax,softmax_ring,softmax_matrix,sigmoid,sigmoid_ring,sigmoid_matrix"
MIB = 2**20


def compile_loss(name, batch, dim, devices, dtype=jnp.float32, fsdp=1, **options):
    """value_and_grad of the loss over `devices`, compiled."""
    mesh = make_mesh(-1, fsdp, devices=devices)

    def value(image, text, scale, bias):
        loss = find(LOSSES, name, "loss")
        run = per_shard(lambda *args, **kw: loss(*args, **kw, **options), mesh, batched=2)
        return run(image, text, scale, bias)

    def array(shape, dtype, sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    rows = array((batch, dim), dtype, batch_sharding(mesh))
    scalar = array((), jnp.float32, replicated(mesh))
    gradient = jax.value_and_grad(value, argnums=(0, 1, 2, 3), has_aux=True)
    # The gradients stay where their embeddings are, as in a train step.
    shardings = (batch_sharding(mesh),) * 2 + (replicated(mesh),) * 2
    step = jax.jit(gradient, out_shardings=(replicated(mesh), shardings))
    return step.lower(rows, rows, scalar, scalar).compile()


def row(name, batch, args, place):
    """One line of the table."""
    try:
        compiled = compile_loss(
            name, batch, args.dim, place.devices, args.dtype, args.fsdp, **args.options
        )
    except jax.errors.JaxRuntimeError as error:
        (reason,) = [line for line in str(error).splitlines() if "Used" in line][:1] or [error]
        return f"| {name} | {batch} | refused: {reason} | | | |"
    program, memory = hlo.parse(compiled.as_text()), compiled.memory_analysis()
    est_ms = hlo.total_cycles(program) / place.chip.clock_hz * 1e3
    moved = sum(c.times * c.bytes for c in hlo.collectives(program))
    temp, peak = memory.temp_size_in_bytes / MIB, memory.peak_memory_in_bytes / MIB
    return f"| {name} | {batch} | {est_ms:.3g} | {temp:.0f} | {peak:.0f} | {moved / MIB:.0f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--sizes", default="32768,131072,1048576", help="global batches")
    parser.add_argument("--losses", default=FORMS)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--fsdp", type=int, default=1, help="shards along the mesh's second axis")
    parser.add_argument("--chunk", type=int, help="columns at a time; none: the loss's own choice")
    args = parser.parse_args()
    args.options = {} if args.chunk is None else {"chunk": args.chunk}
    place = plan.find(args.topology)
    if place.chip is None:
        raise ValueError(f"--topology={args.topology}: CPUs have no estimate of cycles; name TPUs.")
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "libtpu"))
    print(
        f"{args.topology} ({len(place.devices)} chips), d = {args.dim}, {args.dtype}; {versions}\n"
    )
    print("| loss | B | est ms | temp MiB | peak MiB | moved MiB |\n|---|---|---|---|---|---|")
    for batch in map(int, args.sizes.split(",")):
        for name in args.losses.split(","):
            print(row(name, batch, args, place), flush=True)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"losses.py: {error}")
