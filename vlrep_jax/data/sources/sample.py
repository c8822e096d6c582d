"""What every source gives: one encoded picture, and what is said about it."""

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Sample(NamedTuple):
    """One picture and what is said about it.

    Attributes:
        image: the encoded file.
        captions: texts that describe the picture; empty where the data set has none.
        key: unique within its source.
        labels: what else the source knows, as plain values.
        identity: samples of equal identity are never each other's negatives; '' where a source
            does not know, and the pipeline then goes by the caption's text.
        problem: why the source cannot give this picture, one short stable word for counting; ''
            where it can.
    """

    image: bytes
    captions: tuple[str, ...]
    key: str
    labels: dict[str, Any]
    identity: str = ""
    problem: str = ""


def key_hashes(keys: Iterable[str]):
    """uint64[n], a hash of each key that no machine or version changes: for splits by key."""
    digests = b"".join(key_digest(key.encode("utf-8", "replace")) for key in keys)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def key_digest(key: bytes):
    """The 8 bytes of a key's hash."""
    return hashlib.blake2b(key, digest_size=8).digest()


def shard_of(source, index: int, sample: Sample) -> str:
    """Where a sample lies, for a word on what is broken: a file, or a directory.

    A source may say itself, `shard_of(index) -> str`; else it is the directory of the key.
    """
    own = getattr(source, "shard_of", None)
    return str(own(index)) if own is not None else sample.key.rpartition("/")[0]


PICTURE_IDENTITY = "picture:"


def picture_identity(image: bytes):
    """An identity that equal picture files share, whatever source they come from."""
    return PICTURE_IDENTITY + hashlib.blake2b(image, digest_size=16).hexdigest() if image else ""


def text(value):
    """A str that UTF-8 can hold; bytes that are not UTF-8 get replacement characters."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    value = str(value)
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def texts(value):
    """One text or a sequence of them, of any nesting, as a tuple of str; None is none."""
    if value is None:
        return ()
    if isinstance(value, str | bytes):
        return (text(value),)
    return tuple(text(item) for item in np.ravel(np.asarray(value, dtype=object)))


def plain(value):
    """bytes -> str, arrays and lists -> tuple, NumPy scalar -> Python scalar."""
    if isinstance(value, bytes | str):
        return text(value)
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value
