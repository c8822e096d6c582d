"""Tar shards for tests, written by `tarfile`, and what `tarfile` itself finds in them."""

import io
import tarfile
from pathlib import Path

from emoji_data import flat

PICTURES = ("jpg", "jpeg", "png", "webp")


def entry(name, data=b"", **fields):
    """(TarInfo, bytes) of one member; fields are attributes of TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def sample(key, number=0, caption=None, json=None):
    """The members of a picture of grey `number`, with a caption."""
    caption = f"number {number}" if caption is None else caption
    found = [entry(f"{key}.png", flat(number % 256)), entry(f"{key}.txt", caption.encode())]
    return found + ([entry(f"{key}.json", json.encode())] if json else [])


def archive(entries, form=tarfile.GNU_FORMAT):
    """Bytes of a tar of such entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def shards(folder, count, samples, **options):
    """Writes `count` shards of `samples` each and returns their pattern."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(count):
        numbers = range(shard * samples, (shard + 1) * samples)
        entries = [member for n in numbers for member in sample(f"{n:05d}", n, **options)]
        (folder / f"{shard:03d}.tar").write_bytes(archive(entries))
    return f"{folder}/{{000..{count - 1:03d}}}.tar"


def found_by_tarfile(data):
    """[(name, offset of data, bytes)] of the regular files that `tarfile` finds.

    It stops where it meets damage, and gives what it has found until then.
    """
    found = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                if info.isreg() and not info.issparse():
                    end = info.offset_data + info.size
                    found.append((info.name, info.offset_data, data[info.offset_data : end]))
    except (tarfile.TarError, ValueError, OSError, RecursionError, OverflowError):
        pass
    return found
