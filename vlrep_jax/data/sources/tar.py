"""Tar shards of image-text pairs, as webdataset and img2dataset write them, read at random."""

import hashlib
import json
import logging
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from vlrep_jax.data.sources.sample import Sample, key_hashes, picture_identity, plain
from vlrep_jax.data.sources.shard_cache import Changed, ShardCache
from vlrep_jax.data.sources.stores import find, is_remote, local_stamp
from vlrep_jax.data.sources.tar_index import Index, index_path, named, open_index
from vlrep_jax.data.sources.tar_members import BLOCK, Damaged, members
from vlrep_jax.data.sources.tar_walk import Layout, valid
from vlrep_jax.data.sources.values import BadRow, json_object, value_at, value_texts, word

_LOG = logging.getLogger(__name__)
_FILES = 64  # held open
_GAP = 64 << 10  # bytes between two members that are sooner read than skipped
_REMOTE_WINDOW = 16_384


class Tar:
    """Tar shards, local or in an object store.

    The members of a sample lie side by side and share their name up to the first dot behind the
    last slash. The key of a sample is its shard's name, a slash, and that name.

    Args:
        path: one or several paths or URLs of shards, with braces (`{000..123}`) and globs.
        captions: extension of the member that is the caption, such as `txt`, or a field of the
            JSON member, such as `json.caption`: a text or a list of texts.
        image: extensions of pictures; of several in a sample the first of these is taken.
        identity: a field of the JSON member, such as `json.sha256`, or "image": the hash of the
            picture's bytes. Pictures of equal identity are never each other's negatives. '' for
            none.
        labels: label name -> field of the JSON member.
        index_dir: where the index is kept; by default beside the shards, or in the user's cache
            folder where that cannot be written.
        window: shards are read in sequence and samples shuffled within so many; 0 for a shuffle
            over everything, which an object store would answer with a request a sample: there it
            is 16,384 unless given.
        lanes: with a window, the runs of a global batch that read shards of their own. Hosts
            whose number divides it read only their share of the shards. It must divide the batch
            size, and each lane keeps the shards of its window.
        storage_options: for fsspec, such as {"endpoint_url": ...}.
        cache_dir: for copies of remote shards, kept for later runs; '' for a temporary folder.
        cache_bytes: bound of these copies on this machine.
        num_workers: processes that make the index; 0 for one a core.

    Attributes:
        skipped: samples and members that the index left out, by reason.

    Raises:
        FileNotFoundError: a shard is not there.
        ValueError: a shard is compressed, a field is not of the JSON member, or no sample is whole.
    """

    def __init__(
        self,
        path: str | os.PathLike | Sequence[str],
        *,
        captions: str = "txt",
        image: str | Sequence[str] = ("jpg", "jpeg", "png", "webp"),
        identity: str = "",
        labels: Mapping[str, str] | None = None,
        index_dir: str = "",
        window: int | None = None,
        lanes: int = 1,
        storage_options: Mapping | None = None,
        cache_dir: str = "",
        cache_bytes: int = 50_000_000_000,
        num_workers: int = 0,
    ):
        ranges = {"lanes": (lanes, 1), "num_workers": (num_workers, 0)}
        ranges |= {"cache_bytes": (cache_bytes, 1), "window": (window or 0, 0)}
        for option, (value, least) in ranges.items():
            if value < least:
                raise ValueError(f"{option}={value} must be at least {least}.")
        patterns = [path] if isinstance(path, str | os.PathLike) else list(path)
        options = dict(storage_options or {})
        self._fields = {"captions": captions, "identity": identity, "labels": dict(labels or {})}
        own = "" if identity == "image" else identity
        self._layout = _layout(image, captions, [own, *self._fields["labels"].values()])
        folder, self._shards = named(find(patterns, options))
        where = index_path(folder, patterns, self._layout, index_dir)
        self._index = open_index(
            where, self._shards, self._layout, num_workers=num_workers, storage_options=options
        )
        self.skipped = self._index.skipped()
        if self.skipped:
            _LOG.warning("%s: left out %s", folder, self.skipped)
        if not len(self):
            raise ValueError(
                f"The {len(self._shards)} shards in {folder} hold no whole sample (left out: "
                f"{self.skipped}); samples need one of {', '.join(self._layout.image)} and the "
                f"member of {captions!r}."
            )
        remote = any(is_remote(shard.path) for shard in self._shards)
        self._window = (_REMOTE_WINDOW if remote else 0) if window is None else int(window)
        self._lanes = int(lanes)
        if self._lanes > 1 and not self._window:
            raise ValueError(f"lanes={lanes} needs a window; set window to some thousand samples.")
        largest = max(shard.size for shard in self._shards)
        if remote and cache_bytes < 2 * self._lanes * largest:
            raise ValueError(
                f"cache_bytes={cache_bytes:,} must hold two shards a lane: at least "
                f"{2 * self._lanes * largest:,}, for the largest shard has {largest:,} bytes."
            )
        self._cache = ShardCache(cache_dir, cache_bytes, options) if remote else None
        self._open = _OpenFiles(self._cache)

    def __len__(self):
        return len(self._index.rows)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        """Samples by number.

        One that cannot be given has a problem: `changed` or `missing` (its shard since the index
        was made), `unreadable`, `json` (its JSON member is none), `not_utf8` and `not_text` (its
        caption).

        Raises:
            IndexError: there is no such sample.
            OSError: an object store fails again and again.
        """
        indices = np.asarray(list(indices), np.int64)
        if len(indices) and not (-len(self) <= indices.min() and indices.max() < len(self)):
            raise IndexError(f"Of {len(self)} samples, {indices.min()} to {indices.max()} asked.")
        indices = indices % len(self)
        shards = np.searchsorted(self._index.first, indices, "right") - 1
        samples = [None] * len(indices)
        for at in np.argsort(indices, kind="stable"):  # as they lie on the disk
            samples[at] = self._sample(int(indices[at]), int(shards[at]))
        return samples

    def _sample(self, number, shard_number):
        shard = self._shards[shard_number]
        hashed, start, *places = self._index.rows[number].item()
        places = [(b * BLOCK, size) for b, size in zip(places[::2], places[1::2], strict=True)]
        unnamed = f"{shard.name}/#{number - int(self._index.first[shard_number])}"
        try:
            file = self._open(shard)
            key, (image, text, about) = _read(file, start * BLOCK, places, bool(self._layout.text))
        except FileNotFoundError:
            return Sample(b"", (), unnamed, {}, problem="missing")
        except (Changed, Damaged):
            return Sample(b"", (), unnamed, {}, problem="changed")
        except OSError:
            if self._cache is not None:  # the network is down: no reason to see other samples
                raise
            return Sample(b"", (), unnamed, {}, problem="unreadable")
        key = f"{shard.name}/{key}"
        if key_hashes([key])[0] != hashed:
            return Sample(b"", (), unnamed, {}, problem="changed")
        return self._made(key, image, text, about)

    def _made(self, key, image, text, about):
        """Sample of the bytes of its members."""
        captions, identity = self._fields["captions"], self._fields["identity"]
        try:
            known = json_object(about) if self._layout.json else {}
            said = value_texts(text if self._layout.text else _at(known, captions))
        except BadRow as error:
            return Sample(b"", (), key, {}, problem=error.reason)
        labels = {name: plain(_at(known, path)) for name, path in self._fields["labels"].items()}
        if identity == "image":
            return Sample(image, said, key, labels, picture_identity(image))
        return Sample(image, said, key, labels, word(_at(known, identity)) if identity else "")

    def blocks(self):
        """int64[k], samples of each shard; none where they are not read in sequence."""
        return np.diff(self._index.first) if self._window else np.zeros(0, np.int64)

    def windows(self, blocks, seed, batch_size=1):
        """The order of what is left of each shard, as of `data.order.windowed`."""
        # Here, not above: Grain takes a second to import, in every process that makes an index.
        from vlrep_jax.data.order import windowed

        return windowed(
            blocks,
            self._window,
            seed,
            lanes=self._lanes,
            batch_size=batch_size,
            opened=None if self._cache is None else self._read_ahead,
        )

    def _read_ahead(self, numbers):
        shards = [self._shards[number] for number in numbers]
        self._cache.ahead([shard for shard in shards if is_remote(shard.path)])

    def key_hashes(self):
        """uint64[n], the hash of every key."""
        return np.array(self._index.rows["key"])

    def fingerprint(self):
        """Stable hash of the shards' names and sizes, the samples' keys and places, the fields and
        the order."""
        shards = [[name, size, count] for name, size, _, count, _ in self._index.shards]
        held = [shards, self._index.rows_crc, self._layout, self._fields, self._window, self._lanes]
        return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()

    def __getstate__(self):
        state = {k: v for k, v in vars(self).items() if k not in ("_open", "_index")}
        return state | {"_index": (self._index.path, self._index.digest)}

    def __setstate__(self, state):
        path, digest = state.pop("_index")
        vars(self).update(state)
        self._index = Index(path, checked_bytes=0)
        if self._index.digest != digest:
            raise ValueError(f"{path} was made again while it was in use; start again.")
        self._open = _OpenFiles(self._cache)


class _OpenFiles:
    """Descriptors of the shards that were used last."""

    def __init__(self, cache):
        self._cache, self._held, self._lock = cache, OrderedDict(), threading.Lock()

    def __call__(self, shard):
        """An open file of a shard that is as it was when it was indexed."""
        with self._lock:
            file = self._held.get(shard)
            if file is not None:
                self._held.move_to_end(shard)
        if file is None:
            file = _File(self._opened(shard))
            with self._lock:
                self._held[shard] = file
                # Closed by the last thread that reads it. A copy that the cache has removed would
                # take room on the disk as long as it is open.
                if self._cache is not None:
                    gone = [s for s, f in self._held.items() if f.is_removed()]
                    for other in gone:
                        del self._held[other]
                while len(self._held) > _FILES:
                    self._held.popitem(last=False)
        if not is_remote(shard.path):
            status = os.fstat(file.descriptor)
            if (status.st_size, local_stamp(status)) != (shard.size, shard.stamp):
                with self._lock:
                    self._held.pop(shard, None)
                raise Changed(shard.path)
        return file

    def _opened(self, shard):
        if is_remote(shard.path):
            return self._cache.opened(shard)
        return os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)


class _File:
    """A descriptor that closes with its last reference."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def is_removed(self):
        return os.fstat(self.descriptor).st_nlink == 0

    def read(self, offset, length):
        return os.pread(self.descriptor, length, offset)


def _read(file, start, places, with_text):
    """The name at `start` up to its first dot, and the bytes of three members.

    Raises:
        Damaged: there is no such picture.
    """
    wanted = [place for place, used in zip(places, (True, with_text, True), strict=True) if used]
    near = min([offset for offset, _ in wanted if start - _GAP <= offset <= start] or [start])
    end = start
    for offset, size in sorted(wanted):
        if end <= offset <= end + _GAP:
            end = offset + size
    held = file.read(near, end - near)

    def read(offset, length):
        if near <= offset and offset + length <= near + len(held):
            return held[offset - near : offset - near + length]
        return file.read(offset, length)

    _, data, size, name, problem = next(members(read, least=BLOCK, start=start), (0,) * 5)
    if problem != "" or (data, size) != places[0]:
        raise Damaged("changed")
    parts = [read(offset, size) if size else b"" for offset, size in places]
    if [len(part) for part in parts] != [size for _, size in places]:
        raise Damaged("truncated")
    return valid(name[: name.find(b".", name.rfind(b"/") + 1)]).decode(), parts


def _layout(image, captions, fields):
    image = (image,) if isinstance(image, str) else tuple(image)
    if not image or not captions:
        raise ValueError(f"image={image} and captions={captions!r} must each name something.")
    for field in filter(None, fields):
        if not field.startswith("json."):
            raise ValueError(f"{field!r} must be a field of the JSON member, such as 'json.key'.")
    in_json = captions.startswith("json.")
    return Layout(image, "" if in_json else captions, in_json or any(fields))


def _at(known, field):
    """The value of a field of JSON, such as json.a.b; None where there is none."""
    return value_at(known, field.removeprefix("json."))
