"""Weak scaling by plan: the batch a chip stays the same while the slice grows.

Run: python benchmarks/weak_scaling.py [--config=FILE] [--rows=128] [TOPOLOGY ...]

Every slice's program is compiled, which takes one to four minutes each; nothing runs. Efficiency is
the time of a step on the smallest slice of the same generation over that on each: at best, where
all collectives are hidden behind computation, and at worst, where none is. The truth lies between.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOPOLOGIES = (
    *("v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"),
    *("v4:2x2x2", "v4:4x4x4", "v4:8x8x8", "v4:16x16x16"),
    *("v5p:2x2x2", "v5p:4x4x4", "v5p:8x8x8", "v5p:16x16x16"),
)
# The same on every slice: 8 chips split the parameters, and images are gathered along them.
MESH = ("--config.parallel.data=-1", "--config.parallel.fsdp=8")
HEAD = (
    "| slice | chips | global batch | est ms | collectives ms | efficiency, all hidden | none |\n"
    "|---|---|---|---|---|---|---|"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs" / "clip_vit_b16.py"))
    parser.add_argument("--rows", type=int, default=128, help="of the batch, a chip")
    parser.add_argument("topologies", nargs="*", default=TOPOLOGIES, metavar="TOPOLOGY")
    args, overrides = parser.parse_known_args()

    from vlrep_jax import cli, plan

    print(HEAD, flush=True)
    smallest = {}
    for name in args.topologies:
        place = plan.find(name)
        count = len(place.devices)
        words = [*MESH, *overrides, f"--config.batch_size={args.rows * count}"]
        made = plan.plan(cli.load_config(args.config, words), place)
        print(f"{name}: compiled in {made.compile_seconds:.0f} s", file=sys.stderr, flush=True)
        row = f"| {name} | {count:,} | {made.batch_size:,} |"
        if not made.fits:
            print(f"{row} does not fit: {made.peak_bytes / 2**30:.2f} GiB | | | |", flush=True)
            continue
        step, collective = made.estimated_step_seconds, made.collective_seconds
        times = (step, step + collective)
        first = smallest.setdefault(name.split(":")[0], times)
        print(
            f"{row} {step * 1e3:.1f} | {collective * 1e3:.1f} "
            f"| {first[0] / times[0]:.1%} | {first[1] / times[1]:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"weak_scaling.py: {error}")
