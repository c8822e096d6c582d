"""`vlrep data bench`: how fast training data are made here, stage by stage, and who needs more."""

import glob
import math
import os
import statistics
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vlrep_jax.build import bind
from vlrep_jax.data.caption_choice import CAPTIONS, of_source
from vlrep_jax.data.decoding import BadImage
from vlrep_jax.data.order import order
from vlrep_jax.data.picture import Picture, decoder_name, find_decoder
from vlrep_jax.data_tools.recipe import RecipeData
from vlrep_jax.training_data import make_transform

STAGES = ("read", "decode", "transform", "decode and transform", "tokenize")
_WINDOWS = 5  # parts of a measurement, whose median counts
_SAMPLES = 64  # that a stage takes at a time
_ROWS = 64  # of a batch, at most
_ONE = {"threads": "thread", "processes": "process"}
_WARM_UP = 3  # batches
_STAGE_WINDOW_S = 0.3


@dataclass(frozen=True)
class Stage:
    """One stage alone, on one thread.

    Attributes:
        name: of STAGES. samples_per_second: by the clock, waiting included.
        samples_per_cpu_second: by the processor's time; None where it took none to speak of.
    """

    name: str
    samples_per_second: float
    samples_per_cpu_second: float | None


@dataclass(frozen=True)
class Whole:
    """The whole pipeline.

    Attributes:
        makers: 'threads' of the program, or worker 'processes'. count: of them.
        samples_per_second: rows of batches by the clock.
        samples_per_cpu_second: by the processor's time of the program and its workers, which is
            the rate of a core that does nothing else; None where the system does not tell it.
        mib_per_worker: memory that the largest worker has, resident; None for threads and where
            the system does not tell it.
    """

    makers: str
    count: int
    samples_per_second: float
    samples_per_cpu_second: float | None
    mib_per_worker: float | None


def bench(recipe: RecipeData, source, *, counts, seconds: float, say, progress) -> dict:
    """Measures the stages alone, then the whole pipeline with threads and with worker processes.

    Args:
        recipe: whose data are made.
        source: what its `config.data.source` describes.
        counts: numbers of threads and of processes to try, ascending.
        seconds: of a measurement; a figure is the median of five parts of it.
        say: told what is measured.
        progress: called with the number of measurements done, of `measurements`.

    Returns:
        What is documented of `vlrep data bench --json`, but for `needs`.

    Raises:
        ValueError: what the recipe's data raise, or a wrong number.
    """
    if seconds <= 0 or not counts or min(counts) < 1:
        raise ValueError(f"--seconds={seconds} must be above 0, and --workers={counts} 1 or more.")
    rows = recipe.rows_near(_ROWS)
    stages = _stages(recipe, source)
    decoder = decoder_name(find_decoder(recipe.config.data.decoder))
    found = {
        "decoder": decoder,
        "image_size": recipe.image_size,
        "machine_cores": os.cpu_count(),
        "rows": rows,
        "stages": [],
        "whole": [],
    }
    say(
        f"{os.cpu_count()} cores, {decoder}, pictures of {recipe.image_size} x "
        f"{recipe.image_size}, {rows} rows at a time; medians of {_WINDOWS}."
    )
    window_s, done = seconds / _WINDOWS, 0
    for name, take in stages.items():
        take()
        rates = _rates(take, min(window_s, _STAGE_WINDOW_S), time.process_time)
        found["stages"].append(asdict(Stage(name, *rates)))
        progress(done := done + 1)
    for makers in ("threads", "processes"):
        for count in counts:
            workers = count if makers == "processes" else 0
            options = {"num_workers": workers, "num_threads": count, "cache": False}
            with closing(recipe.batches(rows, source=source, **options)) as batches:
                whole = _whole(batches, makers, count, window_s)
            found["whole"].append(asdict(whole))
            progress(done := done + 1)
    return found


def measurements(counts) -> int:
    """How many measurements `bench` makes."""
    return len(STAGES) + 2 * len(counts)


def _whole(batches, makers, count, window_s):
    def take():
        return len(next(batches)["bad"])

    for _ in range(_WARM_UP):
        take()
    rates = _rates(take, window_s, cpu_seconds)
    memory = [resident_mib(pid) for pid in children()] if makers == "processes" else []
    return Whole(makers, count, *rates, max(memory, default=None))


def _rates(take, window_s, cpu_clock):
    """(samples a second, samples a CPU second), medians of windows; None for no CPU time."""
    by_clock, by_cpu = [], []
    for _ in range(_WINDOWS):
        began, cpu_began, taken = time.perf_counter(), cpu_clock(), 0
        while not taken or time.perf_counter() - began < window_s:
            taken += take()
        by_clock.append(taken / (time.perf_counter() - began))
        cpu = None if cpu_began is None else cpu_clock() - cpu_began
        by_cpu.append(taken / cpu if cpu else None)
    cpu = None if None in by_cpu else statistics.median(by_cpu)
    return statistics.median(by_clock), cpu


def _stages(recipe, source):
    """name of STAGES -> () -> samples done, one batch after another."""
    data = recipe.config.data
    transform = make_transform(recipe.config, recipe.image_size)
    caption = of_source(source, bind(CAPTIONS, data.caption, "caption"))
    decoder, rng = find_decoder(data.decoder), np.random.default_rng(0)
    if not len(source):
        raise ValueError("config.data.source has no samples.")
    taken = order(source, recipe.config.seed, recipe.config.batch_size // data.captions_per_image)
    place = iter(range(0, 2**62, _SAMPLES))

    def indices():
        start = next(place)
        return [int(taken[i]) for i in range(start, start + _SAMPLES)]

    files, pictures, texts, reasons = [], [], [], Counter()
    for sample in source.__getitems__(indices()):
        try:
            if sample.problem:
                raise BadImage(sample.problem)
            pictures.append(Picture(sample.image, decoder).pixels())
        except BadImage as error:
            reasons[error.reason] += 1
            continue
        files.append(sample.image)
        texts.append(caption(sample, rng).strip())
    if not files:
        raise ValueError(f"None of the first {_SAMPLES} samples is good: {dict(reasons)}.")

    def each(work, items):
        def take():
            for item in items:
                work(item)
            return len(items)

        return take

    def tokenize():
        recipe.tokenizer.encode_batch(texts, recipe.context_length)
        return len(texts)

    return {
        "read": lambda: len(source.__getitems__(indices())),
        "decode": each(lambda data: Picture(data, decoder).pixels(), files),
        "transform": each(lambda pixels: transform(pixels, rng), pictures),
        "decode and transform": each(lambda data: transform(Picture(data, decoder), rng), files),
        "tokenize": tokenize,
    }


def needs(found: dict, images_per_second: float, hosts: int) -> dict:
    """How many cores make so many images a second.

    Args:
        found: of `bench`.

    Returns:
        `images_per_second`, `hosts`, `images_per_core` (a CPU second with the most worker
        processes tried), `cores` and `cores_per_host`, rounded up.

    Raises:
        ValueError: this system does not tell a process's CPU time.
    """
    rate = [w for w in found["whole"] if w["makers"] == "processes"][-1]["samples_per_cpu_second"]
    if rate is None:
        raise ValueError("What a core does is not known: this system has no /proc to ask.")
    return {
        "images_per_second": images_per_second,
        "hosts": hosts,
        "images_per_core": rate,
        "cores": math.ceil(images_per_second / rate),
        "cores_per_host": math.ceil(images_per_second / rate / hosts),
    }


def cpu_seconds() -> float | None:
    """Of this process, all its threads, and its living children; None where nobody tells."""
    if not os.path.exists("/proc/self/task"):
        return None
    ticks = 0
    for pid in children():
        # The name of a process, in brackets, may hold anything.
        fields = _told(f"/proc/{pid}/stat").rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def children() -> list[int]:
    """Ids of the living children of this process; none where the system does not tell them."""
    paths = glob.glob("/proc/self/task/*/children")
    return [int(pid) for path in paths for pid in _told(path).split()]


def resident_mib(pid: int) -> float:
    """Memory of a process that is in use now, shared parts included; 0 of one that has ended."""
    _, pages, *_ = [*_told(f"/proc/{pid}/statm").split(), 0, 0]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _told(path):
    """What a file of /proc says; nothing where its process or thread has just ended."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def table(found: dict) -> str:
    """What `vlrep data bench` prints of its figures."""
    lines = [f"{'stage alone':<24}{'samples/s':>12}{'a CPU second':>15}"]
    for stage in found["stages"]:
        lines.append(f"  {stage['name']:<22}{_cells(stage)}")
    lines += ["", f"{'whole pipeline':<24}{'samples/s':>12}{'a CPU second':>15}{'a worker':>12}"]
    for whole in found["whole"]:
        makers = _ONE[whole["makers"]] if whole["count"] == 1 else whole["makers"]
        memory = whole["mib_per_worker"]
        held = "" if memory is None else f"{memory:,.0f} MiB"
        lines.append(f"  {whole['count']:>3} {makers:<18}{_cells(whole)}{held:>12}".rstrip())
    if "needs" in found:
        need = found["needs"]
        over = f", {need['cores_per_host']:,} on each of {need['hosts']:,} hosts"
        lines += [
            "",
            f"{need['images_per_second']:,.0f} images/s at {need['images_per_core']:,.0f} a core "
            f"need {need['cores']:,} cores{over if need['hosts'] > 1 else ''}.",
        ]
    return "\n".join(lines)


def _cells(rates):
    cpu = rates["samples_per_cpu_second"]
    per_cpu = "-" if cpu is None else f"{cpu:,.0f}"
    return f"{rates['samples_per_second']:>12,.0f}{per_cpu:>15}"
