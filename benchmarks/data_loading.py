"""Samples a CPU second: the whole data pipeline, bare decode loops, open_clip's loader.

    pip install -e '.[data,parity]' webdataset pandas
    python benchmarks/data_loading.py [--pairs=5] [--source=memory|tar]

JPEG of 640x427 with the spectrum of natural pictures (1/f), qualities 85 to 95, become augmented
224x224. Each side is a process on one core with one thread, started anew for each turn, and they
take turns. `bare` decodes from memory, crops and resizes, and does nothing else; the pipeline also
orders, reads, checks headers, picks captions, tokenizes and stacks batches of uint8; open_clip's
is its own `get_wds_dataset` with its own transforms and tokenizer on a tar of the same pictures.
Prints a table in Markdown: medians over turns. A CPU second is one of the process and its workers,
so that other work on the machine disturbs less; on an idle core it is a second.
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

SIZE, BATCH, PICTURES = 224, 64, 512


def natural(height, width, rng):
    """uint8[height, width, 3] with the spectrum and the correlated colours of photographs."""
    import numpy as np

    high, wide = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    spectrum = np.maximum(np.hypot(high, wide), 1 / max(height, width)) ** -1.1

    def field():
        phases = np.exp(2j * np.pi * rng.random(spectrum.shape))
        return np.fft.irfft2(spectrum * phases, (height, width))

    luma = field()
    pixels = np.stack([luma + 0.35 * field() for _ in range(3)], -1)
    pixels = (pixels - pixels.mean()) / pixels.std() * 55 + 120
    return np.clip(pixels, 0, 255).astype(np.uint8)


def make_tar(path, count=PICTURES):
    """Pictures with captions, as img2dataset writes them."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    # The costly part of a picture is its noise; rolled by half it is another one to an encoder.
    fields = [natural(427, 640, rng) for _ in range(count // 8)]
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            pixels = np.roll(fields[number % len(fields)], 53 * (number // len(fields)), axis=1)
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "JPEG", quality=int(rng.integers(85, 96)))
            caption = f"picture number {number} of natural texture in many colours and no motif"
            for ending, data in (("jpg", out.getvalue()), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{number:06}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def read_tar(path):
    """[(key, JPEG bytes, caption)]."""
    found = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, ending = member.name.split(".")
            found.setdefault(key, {})[ending] = tar.extractfile(member).read()
    return [(key, parts["jpg"], parts["txt"].decode()) for key, parts in found.items()]


class Memory:
    """A source of what `read_tar` gives."""

    def __init__(self, path):
        self._held = read_tar(path)

    def __len__(self):
        return len(self._held)

    def __getitems__(self, indices):
        from vlrep_jax.data.sources import Sample

        held = (self._held[i] for i in indices)
        return [Sample(jpeg, (caption,), key, {}) for key, jpeg, caption in held]

    def fingerprint(self):
        return hashlib.sha256(str(len(self)).encode()).hexdigest()


# A side is made by side(tar, source, **options) and gives take(n): n batches of BATCH.


def bare(tar, source, *, decoder):
    """Decode, crop, resize and nothing else, by the decoder's own calls."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = [jpeg for _, jpeg, _ in read_tar(tar)]

    def box(height, width):
        side = min(height, width) * np.sqrt(rng.uniform(0.9, 1.0))
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
        return left, top, left + side, top + side

    def by_opencv(data):
        import cv2

        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        left, top, right, bottom = (round(edge) for edge in box(*pixels.shape[:2]))
        part = pixels[top:bottom, left:right]
        return cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

    def by_pillow(data):
        picture = Image.open(io.BytesIO(data))
        part = box(picture.height, picture.width)
        return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=part))

    if decoder == "opencv":
        import cv2

        cv2.setNumThreads(1)
    one = {"opencv": by_opencv, "pillow": by_pillow}[decoder]
    numbers = iter(np.tile(np.arange(len(pictures)), 10_000))

    def take(batches):
        for _ in range(batches * BATCH):
            one(pictures[next(numbers)])

    return take


def pipeline(tar, source, *, decoder, num_workers=0):
    """`train_batches` as a recipe has it, on one thread."""
    from functools import partial

    from vlrep_jax.data.caption_choice import CAPTIONS
    from vlrep_jax.data.pipeline import train_batches
    from vlrep_jax.data.sources import SOURCES
    from vlrep_jax.data.tokenizers import TOKENIZERS
    from vlrep_jax.data.transforms import TRANSFORMS

    batches = train_batches(
        Memory(tar) if source == "memory" else SOURCES[source](tar),
        transform=partial(TRANSFORMS["random_crop"], size=SIZE),
        caption=CAPTIONS["random"],
        tokenizer=TOKENIZERS["clip"](),
        context_length=77,
        batch_size=BATCH,
        seed=0,
        num_threads=1,
        prefetch=1,
        decoder=decoder,
        num_workers=num_workers,
    )

    def take(count):
        for _ in range(count):
            assert not next(batches)["bad"].any()

    return take


def open_clip(tar, source):
    """open_clip's training loader: webdataset, Pillow, torchvision."""
    import torch
    from sides import declare_missing_operators

    declare_missing_operators(torch)
    torch.set_num_threads(1)
    import open_clip as package
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset

    args = SimpleNamespace(
        train_data=f"{{{tar},{tar}}}",
        train_num_samples=1_000_000,
        train_data_upsampling_factors=None,
        dataset_resampled=True,
        batch_size=BATCH,
        workers=0,
        world_size=1,
        seed=0,
    )
    transform = image_transform(SIZE, is_train=True)
    tokenizer = package.get_tokenizer("ViT-B-32")
    data = get_wds_dataset(args, transform, is_train=True, tokenizer=tokenizer)
    batches = iter(data.dataloader)

    def take(count):
        for _ in range(count):
            images, _ = next(batches)
            assert images.shape == (BATCH, 3, SIZE, SIZE)

    return take


KEPT = "bare loop, OpenCV, memory kept"
SIDES = {
    "bare loop, OpenCV": (bare, {"decoder": "opencv"}),
    KEPT: (bare, {"decoder": "opencv"}),
    "vlrep_jax, OpenCV": (pipeline, {"decoder": "opencv"}),
    "vlrep_jax, OpenCV, a worker": (pipeline, {"decoder": "opencv", "num_workers": 1}),
    "bare loop, Pillow": (bare, {"decoder": "pillow"}),
    "vlrep_jax, Pillow": (pipeline, {"decoder": "pillow"}),
    "open_clip's loader": (open_clip, {}),
}


def cpu_seconds():
    """Of this process, all its threads, and its living children."""
    ticks = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


# A loop that does nothing else gives each picture's memory back to the system and pays for getting
# it again; a program that holds more, such as the pipeline, does not. Told to keep it, glibc does.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**26), "MALLOC_TRIM_THRESHOLD_": str(2**28)}


def measure(name, tar, source, count):
    """Prints samples a CPU second of a side as JSON; its first batches are not counted."""
    make, options = SIDES[name]
    take = make(tar, source, **options)
    take(3)
    started = cpu_seconds()
    take(count)
    print(json.dumps(count * BATCH / (cpu_seconds() - started)))


def turn(name, args, tar, core):
    """Samples a CPU second of a side, in a process of its own."""
    command = [sys.executable, __file__, f"--side={name}", f"--tar={tar}"]
    command += [f"--source={args.source}", f"--batches={args.batches}"]
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    out = subprocess.run(
        command,
        env=os.environ
        | dict.fromkeys(pools, "1")
        | {"JAX_PLATFORMS": "cpu"}
        | (KEEP if name == KEPT else {}),
        preexec_fn=(lambda: os.sched_setaffinity(0, {core})) if core is not None else None,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(out.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="turns of each side")
    parser.add_argument("--batches", type=int, default=16, help=f"of {BATCH} in a turn")
    parser.add_argument("--source", default="memory", help="'memory', or an entry of SOURCES")
    parser.add_argument("--sides", default=",".join(SIDES).replace(", ", "; "), help="';' for ', '")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--tar", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return measure(args.side, args.tar, args.source, args.batches)
    names = [name.replace("; ", ", ") for name in args.sides.split(",")]
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    with tempfile.TemporaryDirectory() as folder:
        tar = str(Path(folder) / "pictures.tar")
        make_tar(tar)
        rates = {name: [] for name in names}
        for number in range(args.pairs):
            for name in names:
                rates[name].append(turn(name, args, tar, core))
            print(f"turn {number + 1} of {args.pairs}", file=sys.stderr, flush=True)
    packages = ("numpy", "pillow", "opencv-python-headless", "grain", "webdataset")
    packages += ("open_clip_torch", "torch")
    print(", ".join(f"{name} {version(name)}" for name in packages) + "\n")
    columns = [name for name in (KEPT, "bare loop, Pillow") if name in rates]
    columns += [name for name in ("open_clip's loader",) if name in rates]
    print(
        f"| one core | samples/CPU s | least to most | {' | '.join('of ' + c for c in columns)} |"
    )
    print("|---" * (3 + len(columns)) + "|")
    for name, own in rates.items():
        ratios = [
            statistics.median(a / b for a, b in zip(own, rates[other], strict=True))
            for other in columns
        ]
        row = [name, f"{statistics.median(own):.0f}", f"{min(own):.0f} to {max(own):.0f}"]
        print(f"| {' | '.join([*row, *(f'{ratio:.2f}' for ratio in ratios)])} |")


if __name__ == "__main__":
    main()
