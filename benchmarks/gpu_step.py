"""A train step on one GPU here and in open_clip: samples a second and MFU at the same batch.

    pip install -e '.[cuda,parity]'
    python benchmarks/gpu_step.py --model=ViT-L-14 --batch=128
    python benchmarks/gpu_step.py --model=ViT-B-32 --batch=auto

bfloat16 on both sides: open_clip under autocast with torch.compile, torch's SDPA, its local loss
and fused AdamW; here with attention 'xla' and 'cudnn', no remat, no microbatches. One process at a
time holds the GPU: each turn starts its side anew, from warm compilation caches. Prints tables in
Markdown.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version

from sides import Shape, SideFailed, Worker, median_ratio

# image, patch, width, layers; text width, layers, context, vocabulary; embedding, batch
MODELS = {
    "ViT-B-32": Shape(224, 32, 768, 12, 512, 12, 77, 49_408, 512, 0),
    "ViT-B-16": Shape(224, 16, 768, 12, 512, 12, 77, 49_408, 512, 0),
    "ViT-L-14": Shape(224, 14, 1024, 24, 768, 12, 77, 49_408, 768, 0),
    "tiny": Shape(32, 16, 64, 1, 64, 1, 8, 512, 64, 0),  # to try the script itself
}
# Dense bfloat16 FLOP/s as published, by a part of the name that jax gives the card.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
SMALLEST, LARGEST = 32, 8192  # batches that 'auto' tries
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
PEER = "open_clip"


def probe(python, program):
    """What a program prints in a process of its own, which gives the GPU back; '' if it fails."""
    done = subprocess.run([python, "-c", program], capture_output=True, text=True)
    return done.stdout.strip()


def device(args):
    """(jax's name of the device, 'cuda' or 'cpu'); ends the program where there is no GPU."""
    found = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='|')"
    platform, _, kind = probe(sys.executable, found).partition("|")
    if args.allow_cpu:
        return "cpu (figures mean nothing)", "cpu"
    if platform != "gpu":
        refuse(f"needs a GPU: jax sees {platform or 'no device'} only")
    if probe(args.peer_python, "import torch; print(torch.cuda.is_available())") != "True":
        refuse("needs a GPU: torch sees none; give its environment with --peer-python")
    return kind, "cuda"


def refuse(line):
    print(line, file=sys.stderr)
    sys.exit(2)


def start(name, shape, where, args, caches):
    """A worker of one side: 'open_clip', or the form of attention of this library's."""
    if name == PEER:
        options = {
            "compile": not args.eager,
            "device": where,
            "bfloat16": True,
            "fused": True,
        }
        inductor = {"TORCHINDUCTOR_CACHE_DIR": f"{caches}/torch"}
        return Worker(
            PEER, shape, options, python=args.peer_python, environment=ENVIRONMENT | inductor
        )
    options = {
        "dtype": "bfloat16",
        "attention": name,
        "unroll": args.unroll,
        "cache_dir": f"{caches}/jax",
        "flops": True,
    }
    platform = {"JAX_PLATFORMS": "cpu"} if where == "cpu" else {}
    return Worker("ours", shape, options, environment=ENVIRONMENT | platform)


def turn(name, shape, where, args, caches, steps):
    """(samples a second, worker) of one side, which has given the GPU back."""
    with start(name, shape, where, args, caches) as worker:
        worker.steps_per_s(args.warmup)
        return shape.batch_size * worker.steps_per_s(steps), worker


def usable(names, shape, where, args, caches):
    """The sides that can take a step here; says why of those that cannot, such as a kernel."""
    works = []
    for name in names:
        try:
            turn(name, replace(shape, batch_size=SMALLEST), where, args, caches, 1)
            works.append(name)
        except SideFailed as failure:
            print(f"\n{name} is left out:\n\n{failure}\n")
    if PEER not in works or len(works) == 1:
        sys.exit("One of the two sides does not run, so there is nothing to compare.")
    return works


def largest_batch(name, shape, where, args, caches):
    """The largest power of two that takes a step, 0 if not even the smallest does."""
    fits, size = 0, SMALLEST
    while size <= args.largest:
        try:
            turn(name, replace(shape, batch_size=size), where, args, caches, 1)
        except SideFailed as failure:
            if not failure.out_of_memory:
                raise
            break
        fits, size = size, 2 * size
    return fits


def batches(names, shape, where, args, caches):
    """The batch sizes asked for; 'auto' is the largest that fits every side."""
    if args.batch != "auto":
        return [int(size) for size in args.batch.split(",")]
    most = {name: largest_batch(name, shape, where, args, caches) for name in names}
    print("Largest power of two that fits:", ", ".join(f"{n} {b}" for n, b in most.items()))
    if not min(most.values()):
        refuse(f"a batch of {SMALLEST} does not fit every side: {most}")
    return [min(most.values())]


def compare(names, shape, where, args, caches):
    """({name: samples a second, one figure a pair}, FLOPs of a pair, parameters)."""
    rates, workers = {name: [] for name in names}, {}
    for pair in range(args.pairs + 1):
        for name in names:
            rate, workers[name] = turn(name, shape, where, args, caches, args.steps)
            if pair:  # the first turns fill the compilation caches
                rates[name].append(rate)
    counts = {name: worker.parameters for name, worker in workers.items()}
    if len(set(counts.values())) != 1:
        sys.exit(f"The parameter counts differ, so the steps cannot be compared: {counts}.")
    flops = next(w.about["flops_per_pair"] for n, w in workers.items() if n != PEER)
    return rates, flops, counts[PEER]


def show(shape, rates, flops, parameters, peak):
    """One table: a line for each side."""
    print(f"\n{shape}; {parameters:,} parameters on both sides; {flops / 1e9:.1f} GFLOP a pair.\n")
    print("| | samples/s | least to most | MFU | by open_clip |\n|---|---|---|---|---|")
    for name, its in rates.items():
        label = name if name == PEER else f"vlrep_jax, attention {name}"
        median, extremes = statistics.median(its), f"{min(its):,.1f} to {max(its):,.1f}"
        mfu = f"{median * flops / peak:.1%}" if peak else "no peak"
        ratio = "" if name == PEER else f"{median_ratio(its, rates[PEER]):.2f}x"
        print(f"| {label} | {median:,.1f} | {extremes} | {mfu} | {ratio} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-16", help=f"comma list of {', '.join(MODELS)}")
    parser.add_argument("--batch", default="auto", help="comma list; 'auto': the largest that fits")
    parser.add_argument("--attention", default="xla,cudnn", help="comma list")
    parser.add_argument("--pairs", type=int, default=5, help="turns of each side")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a turn")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--largest", type=int, default=LARGEST, help="batch at which 'auto' stops")
    parser.add_argument("--peak", type=float, help="the card's dense bfloat16 FLOP/s")
    parser.add_argument(
        "--unroll", action="store_true", help="vlrep_jax without a loop over layers"
    )
    parser.add_argument("--eager", action="store_true", help="open_clip without torch.compile")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with open_clip")
    parser.add_argument("--allow-cpu", action="store_true", help="to try the script itself")
    args = parser.parse_args()
    models = args.model.split(",")
    if unknown := set(models) - set(MODELS):
        refuse(f"unknown model {', '.join(sorted(unknown))}; known: {', '.join(MODELS)}")
    kind, where = device(args)
    has_peer = (
        "import importlib.metadata as m; print(m.version('open_clip_torch'), m.version('torch'))"
    )
    peer_versions = probe(args.peer_python, has_peer).split()
    if not peer_versions:
        refuse("needs open_clip: pip install -e '.[parity]'")
    known_peaks = [value for name, value in PEAKS.items() if name in kind]
    peak = args.peak or next(iter(known_peaks), None)
    names = [PEER, *args.attention.split(",")]
    print(f"{kind}; jax {version('jax')}, open_clip_torch {peer_versions[0]}, ", end="")
    print(f"torch {peer_versions[1]}; {args.pairs} alternated turns of {args.steps} steps each.")
    if peak:
        print(f"MFU: of {peak / 1e12:,.0f} TFLOP/s.")
    with tempfile.TemporaryDirectory() as caches:
        for model in models:
            shape = MODELS[model]
            sides = usable(names, shape, where, args, caches)
            for size in batches(sides, shape, where, args, caches):
                sized = replace(shape, batch_size=size)
                show(sized, *compare(sides, sized, where, args, caches), peak)


if __name__ == "__main__":
    try:
        main()
    except SideFailed as failure:
        sys.exit(f"A side failed:\n{failure}")
