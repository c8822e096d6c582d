"""A train step on CPU here and in open_clip: its own package, its own loss, torch's AdamW.

    pip install -e '.[parity]'
    python benchmarks/cpu_step.py

Both sides have the same shapes, the same number of parameters, float32 and as many threads; each
lives in a process of its own, and they take turns. The step is forward, contrastive loss, backward,
AdamW with decay and the clamp of the logit scale. Prints tables in Markdown: medians over pairs.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from sides import Shape, SideFailed, Worker, alternated, median_ratio

SHAPE = Shape(
    image_size=96,
    patch_size=16,
    width=256,
    depth=6,
    text_width=256,
    text_depth=4,
    context_length=32,
    vocab_size=4096,
    embed_dim=256,
    batch_size=64,
)
QUICK = replace(SHAPE, image_size=64, depth=2, text_depth=2, batch_size=16)
REST_S = 0.3


def environment(threads):
    """Environment of a worker: only so many threads of whatever pool."""
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {"JAX_PLATFORMS": "cpu", **dict.fromkeys(pools, str(threads))}


def limit_cores(threads):
    """Leaves so many cores to this process and its workers: XLA has no other setting for it."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        sys.exit(f"--threads={threads}, but there are {len(cores)} cores.")
    os.sched_setaffinity(0, cores[:threads])


def variants(args, cache_dir, inductor_dir):
    """name -> (side, options, what its environment has besides)."""
    peer = {"threads": args.threads, "fused": args.fused}
    layers = {"unroll": not args.scan}
    return {
        "vlrep_jax": ("ours", layers, {}),
        "vlrep_jax, warm cache": ("ours", layers | {"cache_dir": cache_dir}, {}),
        "open_clip eager": ("open_clip", peer, {}),
        "open_clip torch.compile": (
            "open_clip",
            peer | {"compile": True},
            {"TORCHINDUCTOR_CACHE_DIR": inductor_dir},
        ),
    }


def start(shape, variant, args):
    side, options, besides = variant
    return Worker(side, shape, options, environment=environment(args.threads) | besides)


def first_steps(shape, table, args):
    """name -> median seconds from process start to the end of the first step, alone on the cores.

    A variant that fails is not in it, and says why.
    """
    seconds, parameters = {}, {}
    with start(shape, table["vlrep_jax, warm cache"], args):
        pass  # fills the cache
    for name, (side, options, besides) in table.items():
        runs = []
        for turn in range(args.starts):
            # A directory of its own each time: inductor's cache would make all but the first warm.
            own = {key: f"{value}/{turn}" for key, value in besides.items()}
            try:
                with start(shape, (side, options, own), args) as worker:
                    runs.append(worker.first_step_s)
                    parameters[name] = worker.parameters
            except SideFailed as failure:
                if name != "open_clip torch.compile":
                    raise
                print(f"{name} failed:\n\n{failure}\n")
                break
        if runs:
            seconds[name] = statistics.median(runs)
    counts = set(parameters.values())
    if len(counts) != 1:
        sys.exit(f"The parameter counts differ, so the steps cannot be compared: {parameters}.")
    return seconds, counts.pop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="turns of each side")
    parser.add_argument("--steps", type=int, default=5, help="steps in a turn")
    parser.add_argument("--starts", type=int, default=1, help="fresh processes for the first step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scan", action="store_true", help="keep vlrep_jax's loop over layers")
    parser.add_argument("--fused", action="store_true", help="torch's fused AdamW, not its default")
    parser.add_argument("--quick", action="store_true", help="a tiny model and two pairs")
    args = parser.parse_args()
    try:
        peers = ("jax", "torch", "open_clip_torch")
        versions = ", ".join(f"{name} {version(name)}" for name in peers)
    except PackageNotFoundError as error:
        print(f"needs {error.name}: pip install -e '.[parity]'", file=sys.stderr)
        sys.exit(2)
    shape = QUICK if args.quick else SHAPE
    if args.quick:
        args.pairs, args.steps = 2, 2
    limit_cores(args.threads)
    with tempfile.TemporaryDirectory() as cache_dir, tempfile.TemporaryDirectory() as inductor_dir:
        table = variants(args, cache_dir, inductor_dir)
        seconds, parameters = first_steps(shape, table, args)
        names = [name for name in seconds if "cache" not in name]
        workers = {name: start(shape, table[name], args) for name in names}
        try:
            options = {"pairs": args.pairs, "steps": args.steps, "rest_s": REST_S}
            rates = alternated(workers, **options)
        finally:
            for worker in workers.values():
                worker.close()
    print(f"{shape}; {parameters:,} parameters on both sides; float32, {args.threads} threads.")
    print(f"{versions}, Python {platform.python_version()}, {platform.machine()}.")
    print(f"{args.pairs} alternated turns of {args.steps} steps each after 3; ratios by pairs.\n")
    print("| | steps/s | least to most | vlrep_jax is | start to first step, s |")
    print("|---|---|---|---|---|")
    for name in seconds:
        if name not in rates:
            print(f"| {name} | | | | {seconds[name]:.1f} |")
            continue
        its = rates[name]
        ratio = f"{median_ratio(rates['vlrep_jax'], its):.2f}x" if name != "vlrep_jax" else ""
        median, extremes = statistics.median(its), f"{min(its):.2f} to {max(its):.2f}"
        print(f"| {name} | {median:.2f} | {extremes} | {ratio} | {seconds[name]:.1f} |")


if __name__ == "__main__":
    try:
        main()
    except SideFailed as failure:
        sys.exit(f"A side failed:\n{failure}")
