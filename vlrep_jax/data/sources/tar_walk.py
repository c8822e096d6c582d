"""The samples of tar shards, by a walk over headers, by worker processes where there are many."""

import json
import os
import struct
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlrep_jax.data.sources.reading import MAX_BYTES
from vlrep_jax.data.sources.sample import key_digest
from vlrep_jax.data.sources.tar_members import BLOCK, COMPRESSED, Damaged, members

# One sample: the hash of its key, the block in which its picture's headers begin, and block of
# data and bytes of its picture, caption and JSON member (0 where a sample has none). 36 bytes.
ROW = np.dtype(
    [
        ("key", "<u8"),
        ("start", "<u4"),
        ("image", "<u4"),
        ("image_bytes", "<u4"),
        ("text", "<u4"),
        ("text_bytes", "<u4"),
        ("json", "<u4"),
        ("json_bytes", "<u4"),
    ]
)
_PACK = struct.Struct("<8s7I").pack
_MAX_OFFSET = BLOCK * (2**32 - 1)  # 2 TiB
_NOWHERE = (0, 0)
_FEW = 4  # shards for which no process is started


class Layout(NamedTuple):
    """Which members make a sample.

    Attributes:
        image: extensions of pictures; where a sample has several, the first of these is taken.
        text: extension of a member that is a caption; '' for none.
        json: whether a sample needs a JSON member.
    """

    image: tuple[str, ...]
    text: str
    json: bool


def walk(read, size, name, layout, **blocks):
    """The samples of one shard.

    Args:
        read: (offset, length) -> bytes of the shard, fewer only at its end.
        size: bytes of the shard.
        name: of the shard; it begins every key.
        layout: Layout.
        **blocks: as for `members`.

    Returns:
        ROW[n], and a dict of how many samples or members were left out, by reason.

    Raises:
        ValueError: the shard is compressed.
    """
    magic = read(0, 8)
    for mark, (kind, remedy) in COMPRESSED.items():
        if magic.startswith(mark):
            raise ValueError(
                f"{name} is compressed ({kind}), and then nothing in it can be read by its "
                f"place: unpack the shards once ({remedy}); pictures are compressed already."
            )
    text, fields = layout.text.lower().encode(), b"json" if layout.json else b""
    roles = {fields: "json", text: "text"}
    roles |= {name.lower().encode(): rank for rank, name in enumerate(layout.image)}
    roles.pop(b"", None)
    prefix = name.encode("utf-8", "backslashreplace") + b"/"
    rows, seen, skipped = [], set(), Counter()

    def close(key, image, others):
        """Ends a group of members and keeps it if it is a whole sample."""
        if text and text == fields and "json" in others:
            others["text"] = others["json"]  # one member is both
        if image is None:
            skipped["no_image"] += 1
        elif text and "text" not in others:
            skipped["no_caption"] += 1
        elif fields and "json" not in others:
            skipped["no_json"] += 1
        elif key in seen:
            skipped["duplicate_key"] += 1
        else:
            seen.add(key)
            places = others.get("text", _NOWHERE) + others.get("json", _NOWHERE)
            rows.append(_PACK(key_digest(prefix + valid(key)), *image, *places))

    current, image, best, others = None, None, len(roles), {}
    try:
        for start, data, length, path, problem in members(read, **blocks):
            if data + length > size:
                raise Damaged("truncated")
            slash = path.rfind(b"/") + 1
            dot = path.find(b".", slash)
            if problem or dot <= slash or path[0] == 47 or b".." in path:
                reason = _unusable(path, problem, dot > slash)
                if reason is not None:
                    skipped[reason] += reason != ""
                    continue
            if path[:dot] != current:
                if current is not None:
                    close(current, image, others)
                current, image, best, others = path[:dot], None, len(roles), {}
            role = roles.get(path[dot + 1 :].lower())
            if role is None:
                continue
            if length > MAX_BYTES or data > _MAX_OFFSET:
                skipped["too_large"] += 1
            elif role in others or role == best:
                skipped["duplicate_member"] += 1
            elif role.__class__ is str:
                others[role] = data // BLOCK, length
            elif role < best:
                image, best = (start // BLOCK, data // BLOCK, length), role
    except Damaged as damage:
        skipped[damage.reason] += 1
    if current is not None:
        close(current, image, others)
    return np.frombuffer(b"".join(rows), ROW), dict(+skipped)


def _unusable(path, problem, has_extension):
    """Why a member is in no sample, '' where that is nothing to count; None for one that is."""
    if problem == "directory":
        return ""
    if path[:1] == b"/" or b".." in path.split(b"/"):
        return "unsafe_name"
    # A hidden file, or one without extension, is in no sample.
    return problem or (None if has_extension else "no_extension")


def valid(name):
    """Bytes of a name as UTF-8; what is not becomes backslash escapes, which keep names apart."""
    return name if name.isascii() else name.decode("utf-8", "backslashreplace").encode()


def walk_file(path, name, layout):
    """`walk` of a local file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return walk(
            lambda offset, length: _pread(descriptor, length, offset),
            os.fstat(descriptor).st_size,
            name,
            layout,
        )
    finally:
        os.close(descriptor)


def _pread(descriptor, length, offset):
    try:
        return os.pread(descriptor, length, offset)
    except (OverflowError, OSError) as error:
        # A header may name a place that no file has.
        if isinstance(error, OverflowError) or error.errno == 22:
            return b""
        raise


def walked(shards, layout, num_workers=0):
    """(rows, skipped) of each of many local shards, in order, by worker processes.

    The workers are programs of their own: processes forked from one with threads can hang, and
    spawned ones would run the caller's script again.

    Args:
        shards: sequence of (path, name).
        layout: Layout.
        num_workers: processes; 0 for one a core.

    Raises:
        ValueError, OSError: as `walk_file`.
        RuntimeError: a worker died.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    num_workers = min(num_workers or cores, len(shards))
    if num_workers <= 1 or len(shards) <= _FEW:
        for path, name in shards:
            yield walk_file(path, name, layout)
        return
    own, workers = threading.local(), []

    def ask(shard):
        if not hasattr(own, "worker"):
            own.worker = _Worker(layout)
            workers.append(own.worker)
        return own.worker.walk(*shard)

    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="tar-index")
    try:
        yield from pool.map(ask, shards)
    finally:
        for worker in workers:
            worker.close()
        pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """A process that walks one shard after the other."""

    def __init__(self, layout):
        root = str(Path(__file__).resolve().parents[3])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import {__name__} as walk; walk.serve()", json.dumps(layout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )

    def walk(self, path, name):
        try:
            self._process.stdin.write(json.dumps([path, name]).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            rows = self._process.stdout.read(answer["bytes"])
        except (OSError, ValueError):
            code = self._process.wait()
            raise RuntimeError(
                f"The process that indexed {path} ended with code {code}; run again."
            ) from None
        if answer["error"]:
            kind = OSError if answer["error"] == "OSError" else ValueError
            raise kind(answer["message"])
        return np.frombuffer(rows, ROW), answer["skipped"]

    def close(self):
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def serve():
    """The program of a worker: a shard a line comes in, and its rows go out."""
    image, text, json_needed = json.loads(sys.argv[1])
    layout = Layout(tuple(image), text, json_needed)
    out = sys.stdout.buffer
    for line in sys.stdin:
        path, name = json.loads(line)
        answer, rows = {"error": "", "bytes": 0, "skipped": {}}, b""
        try:
            found, answer["skipped"] = walk_file(path, name, layout)
            rows = found.tobytes()
            answer["bytes"] = len(rows)
        except (OSError, ValueError) as error:
            kind = "OSError" if isinstance(error, OSError) else "ValueError"
            answer |= {"error": kind, "message": str(error)}
        out.write(json.dumps(answer).encode() + b"\n" + rows)
        out.flush()
