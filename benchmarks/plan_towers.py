"""The towers' step by plan: every row a recipe with changes, compiled for a slice; nothing runs.

Run: python benchmarks/plan_towers.py [--topology=v5e:16x16] [--only=WORD] [--config.key=value ...]

Each row takes one to four minutes to compile. The rows of big_vision and clip-jax are figures of
their own code, compiled once for the same slice and shapes with the same compiler; they are printed
for comparison, not compiled here.
"""

import argparse
import sys
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# SigLIP's B/16 with 64 tokens is the shape of both references: two towers of 768 x 12.
B16, L14 = "siglip_vit_b16.py", "clip_vit_l14.py"
REMAT = "--config.model.towers.remat="
AT_ONCE = "--config.microbatch.image=0"
HALF = "flip_vit_l16.py"  # half of the patches; its tuning sees them all
ROWS = [
    ("SigLIP B/16, the recipe: full remat, 32 images at a time", B16, []),
    ("SigLIP B/16, full remat, at once", B16, [AT_ONCE]),
    ("SigLIP B/16, lite, at once", B16, [REMAT + "lite", AT_ONCE]),
    ("SigLIP B/16, dots, at once", B16, [REMAT + "dots", AT_ONCE]),
    ("SigLIP B/16, no remat, at once", B16, [REMAT + "none", AT_ONCE]),
    ("SigLIP B/16, 4 chunks with cached gradients", B16, [AT_ONCE, "--config.chunks=4"]),
    ("SigLIP B/16, data parallel", B16, ["--config.parallel.data=-1", "--config.parallel.fsdp=1"]),
    ("SigLIP B/16, a mesh of 16 x 16", B16, ["--config.parallel.data=16"]),
    ("CLIP B/16, the recipe", "clip_vit_b16.py", []),
    ("CLIP L/14, the recipe: full remat, 16 images at a time", L14, []),
    ("CLIP L/14, lite, 16 a chip", L14, [REMAT + "lite", AT_ONCE, "--config.batch_size=4096"]),
    ("CLIP L/16, every patch", HALF + ":tune", ["--config.batch_size=32768"]),
    ("CLIP L/16, half of the patches", HALF, ["--config.batch_size=32768"]),
]
# est ms, MFU, temp MiB on v5e:16x16, batch 32,768, full remat (jax 0.10.2, libtpu 0.0.42.1).
REFERENCES = [
    ("big_vision, its towers and sigmoid loss", 325.6, 0.278, 3542),
    ("clip-jax, its model, softmax", 389.0, 0.233, 4604),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    args, overrides = parser.parse_known_args()

    from vlrep_jax import cli, plan

    place = plan.find(args.topology)
    print(f"{args.topology}, changes: {' '.join(overrides) or 'none'}\n")
    print("| step | est ms | collectives ms | MFU | temp MiB | peak MiB | compile s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    if args.topology == "v5e:16x16" and not args.only and not overrides:
        for name, milliseconds, mfu, temp in REFERENCES:
            print(f"| {name} | {milliseconds} | | {mfu} | {temp} | | |", flush=True)
    for name, file, words in ROWS:
        if args.only not in name:
            continue
        config = cli.load_config(str(CONFIGS / file), [*words, *overrides])
        made = plan.plan(config, place, lambda line: print(line, file=sys.stderr, flush=True))
        print(f"| {name} | {_cells(made)} |", flush=True)


def _cells(made):
    took, peak = f"{made.compile_seconds:.0f}", f"{made.peak_bytes / 2**20:,.0f}"
    if not made.fits:
        return f"does not fit | | | | {peak} needed | {took}"
    return (
        f"{made.estimated_step_seconds * 1e3:.1f} | {made.collective_seconds * 1e3:.1f} | "
        f"{made.mfu:.3f} | {made.temp_bytes / 2**20:,.0f} | {peak} | {took}"
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"plan_towers.py: {error}")
