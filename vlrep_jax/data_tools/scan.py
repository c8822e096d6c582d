"""Every sample of a source read, decoded and measured once, by several processes."""

import hashlib
import importlib.util
import io
import multiprocessing
import os
import signal
import threading
import unicodedata
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice

import cloudpickle
import numpy as np
from PIL import Image

from vlrep_jax.data.decoding import FORMATS, MAX_PIXELS, BadImage, decode

CHUNK = 64  # samples that a process takes at a time
NO_CAPTION = "no_caption"
_AHEAD = 4  # chunks a process that are handed out at a time

# One row a good sample. With the rows of its captions it is all that a scan keeps of a sample.
ROW = np.dtype(
    [
        ("index", np.int64),
        ("width", np.int32),
        ("height", np.int32),
        ("bytes", np.int64),
        ("captions", np.int32),
        ("sha", np.uint64),  # of the file: equal files are equal here
        ("look", np.uint64),  # perceptual hash: pictures that look alike differ in few bits
    ]
)
CAPTION = np.dtype(
    [("row", np.int64), ("chars", np.int32), ("words", np.int32), ("text", np.uint64)]
)


@dataclass(frozen=True)
class Scan:
    """What a source holds.

    Attributes:
        size: samples of the source. scanned: those that were looked at.
        rows: ROW[n], the good samples, in the source's order.
        captions: CAPTION[m], the captions of good samples; `row` is into `rows`, `text` a hash.
        bad: samples that cannot be trained on, by reason.
        formats: good pictures by file format. scripts: captions by script of most of their letters.
        has_looks: whether `look` is there; it is 0 without the package imagehash.
        seconds: of the scan. workers: processes that did it.
    """

    size: int
    scanned: int
    rows: np.ndarray
    captions: np.ndarray
    bad: Counter
    formats: Counter
    scripts: Counter
    has_looks: bool
    seconds: float
    workers: int


def scan(
    source,
    *,
    workers: int,
    limit: int = 0,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    clock: Callable[[], float],
    progress: Callable[[int], None] = lambda done: None,
    on_bad: Callable[[str, str], None] = lambda key, reason: None,
) -> Scan:
    """Looks at a source's samples, or at a random part of them.

    Args:
        source: an entry of SOURCES.
        workers: processes; 0 scans in this one.
        limit: samples to look at, drawn with `seed`; 0 for all.
        max_pixels: larger pictures are bad.
        clock: gives seconds.
        progress: called with the number of samples done.
        on_bad: called with key and reason of each bad sample, in the source's order. They are not
            kept: there may be as many as there are samples.

    Raises:
        ValueError: a process died.
    """
    began, size = clock(), len(source)
    wanted = range(size)
    if limit and limit < size:
        wanted = np.sort(np.random.default_rng(seed).choice(size, limit, replace=False))
    chunks = (wanted[i : i + CHUNK] for i in range(0, len(wanted), CHUNK))
    rows, captions, done, good = [], [], 0, 0
    bad, formats, scripts = Counter(), Counter(), Counter()
    has_looks = importlib.util.find_spec("imagehash") is not None
    for part in _parts(chunks, workers, (source, max_pixels, has_looks)):
        part.captions["row"] += good
        good += len(part.rows)
        rows.append(part.rows)
        captions.append(part.captions)
        formats.update(part.formats)
        scripts.update(part.scripts)
        for key, reason in part.bad:
            bad[reason] += 1
            on_bad(key, reason)
        done += part.size
        progress(done)
    return Scan(
        size=size,
        scanned=len(wanted),
        rows=np.concatenate([np.empty(0, ROW), *rows]),
        captions=np.concatenate([np.empty(0, CAPTION), *captions]),
        bad=bad,
        formats=formats,
        scripts=scripts,
        has_looks=has_looks,
        seconds=clock() - began,
        workers=workers,
    )


@dataclass
class _Part:
    size: int
    rows: np.ndarray
    captions: np.ndarray
    bad: list
    formats: Counter
    scripts: Counter


def _parts(chunks, workers, arguments):
    """What `_scan_chunk` finds in each chunk, in order."""
    if not workers:
        for chunk in chunks:
            yield _scan_chunk(chunk, *arguments)
        return
    # Spawned, not forked: a fork would copy the threads' locks of whatever runs here.
    spawn = multiprocessing.get_context("spawn")
    # By value where the class is of the user's recipe, which no process runs.
    pool = ProcessPoolExecutor(workers, spawn, _begin, (cloudpickle.dumps(arguments),))
    try:
        # A few at a time: a future for each of a billion samples would fill the memory.
        with _deaf():
            asked = deque(pool.submit(_scan_own, c) for c in islice(chunks, workers * _AHEAD))
        while asked:
            yield asked.popleft().result()
            asked.extend(pool.submit(_scan_own, c) for c in islice(chunks, 1))
    except BrokenProcessPool:
        raise ValueError(
            "A process that scans the data died, as when the system is out of memory. Use fewer "
            "--workers, or --workers=0 to see what happens."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf():
    """Processes that are started meanwhile do not hear Ctrl-C: this one ends them, a little later.

    A process inherits for good what is blocked. Ignoring it here would lose a Ctrl-C that comes
    meanwhile; threads that do not block it can take it, so it is also kept until the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    heard = signal.signal(signal.SIGINT, lambda *args: came.append(args))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, heard)
    if came:
        signal.raise_signal(signal.SIGINT)


def _begin(pickled):
    global _OWN
    _OWN = cloudpickle.loads(pickled)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    # A process that waits for work of a parent that was killed would wait for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _scan_own(indices):
    return _scan_chunk(indices, *_OWN)


def _scan_chunk(indices, source, max_pixels, has_looks):
    rows, captions, bad, formats, scripts = [], [], [], Counter(), Counter()
    indices = [int(index) for index in indices]
    for index, sample in zip(indices, source.__getitems__(indices), strict=True):
        texts = said(sample)
        try:
            if sample.problem:
                raise BadImage(sample.problem)
            image = decode(sample.image, max_pixels)
        except BadImage as error:
            bad.append((sample.key, error.reason))
            continue
        if not texts:
            bad.append((sample.key, NO_CAPTION))
            continue
        height, width = image.shape[:2]
        look = _look(image) if has_looks else 0
        file = (len(sample.image), len(texts), _hash(sample.image), look)
        captions += [(len(rows), len(t), len(t.split()), _hash(t.encode())) for t in texts]
        rows.append((index, width, height, *file))
        formats[Image.open(io.BytesIO(sample.image), formats=FORMATS).format] += 1
        scripts.update(map(script, texts))
    found = np.array(rows, ROW), np.array(captions, CAPTION)
    return _Part(len(indices), *found, bad, formats, scripts)


def said(sample) -> list[str]:
    """The captions of a sample that hold more than white space, without it at their ends."""
    # JSON can hold halves of characters, which no file takes.
    texts = (text.encode("utf-8", "replace").decode().strip() for text in sample.captions)
    return [text for text in texts if text]


def _hash(data):
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _look(image):
    from imagehash import phash

    return int(str(phash(Image.fromarray(image))), 16)


def script(text: str) -> str:
    """The script of most letters of a text, such as 'Latin'; 'none' where it has no letter."""
    counts = Counter(name for name in map(_script_of, text) if name)
    return counts.most_common(1)[0][0] if counts else "none"


@cache
def _script_of(character):
    # What a letter in another style stands for: wide, bold, raised.
    letter = unicodedata.normalize("NFKC", character)[:1]
    if not letter.isalpha():
        return ""
    # The first word of a letter's name says its script; Python knows no other list of them.
    name = unicodedata.name(letter, "unknown").split()[0].split("-")[0].capitalize()
    return "Han" if name == "Cjk" else name
