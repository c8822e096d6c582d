"""TensorBoard's event files, scalars only, written as they are read: record after record.

A file holds records of TensorFlow's TFRecord format, each an `Event` protocol buffer. Written here
because every record is to be on disk, whole, when the step's row in metrics.jsonl is: the usual
writers keep events for seconds in a thread, which a killed process loses.
"""

import math
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from vlrep_jax.appending import Appender

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types of protocol buffers
_START = 1  # SessionLog.START: hides events of its step and later ones in earlier files
_LARGEST = (2 - 2**-23) * 2.0**127  # of float32
_CASTAGNOLI = 0x82F63B78  # the polynomial of CRC-32C, bits reversed


class EventFile:
    """One new file in a directory, which sorts behind all that are there."""

    def __init__(self, directory: Path, *, hide_from: int | None = None):
        """Makes the file.

        Args:
          directory: made if missing.
          hide_from: events of earlier files at this step or later ones are not to be shown.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._appender = Appender(directory / _next_name(directory))
        self._add(_bytes(3, b"brain.Event:2"))
        if hide_from is not None:
            self._add(_varint(2, hide_from) + _bytes(7, _varint(1, _START)))
        self.flush()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the scalars of a step; they are written by `flush`."""
        scalars = (
            _bytes(1, _bytes(1, name.encode()) + _key(2, _FLOAT) + _float32(value))
            for name, value in values.items()
        )
        self._add(_varint(2, step) + _bytes(5, b"".join(scalars)))

    def flush(self) -> None:
        """As `Appender.flush`."""
        self._appender.flush()

    def sync(self) -> None:
        """As `Appender.sync`."""
        self._appender.sync()

    def close(self) -> None:
        """As `Appender.close`."""
        self._appender.close()

    def _add(self, fields):
        self._appender.add(record(_key(1, _DOUBLE) + struct.pack("<d", time.time()) + fields))


def record(data: bytes) -> bytes:
    """A TFRecord: length and data, each with its masked checksum."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _next_name(directory):
    """A name that sorts last, as the order of names is that in which TensorBoard reads files."""
    names = [p.name for p in directory.iterdir() if p.name.startswith("events.out.tfevents.")]
    times = [int(name.split(".")[3]) for name in names if name.split(".")[3].isdigit()]
    # Not before the newest there: the clock of another host may have been ahead.
    now = max([int(time.time()), *(t + 1 for t in times)])
    return f"events.out.tfevents.{now:010d}.{socket.gethostname()}.{os.getpid()}"


def _key(field, wire_type):
    return _number(field << 3 | wire_type)


def _varint(field, value):
    return _key(field, _VARINT) + _number(value)


def _bytes(field, data):
    return _key(field, _BYTES) + _number(len(data)) + data


def _float32(value):
    # Beyond float32's range `struct` raises; what was meant is as good as infinite.
    is_large = math.isfinite(value) and abs(value) > _LARGEST
    return struct.pack("<f", math.copysign(math.inf, value) if is_large else value)


def _number(value):
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _table():
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (_CASTAGNOLI if entry & 1 else 0)
        yield entry


_CRC = tuple(_table())


def _checksum(data):
    """The masked CRC-32C of bytes, as TFRecords have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
