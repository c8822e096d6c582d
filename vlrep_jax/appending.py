"""Files that grow by whole records, whatever happens while one is written."""

import os
from collections import deque
from contextlib import suppress
from pathlib import Path


class Appender:
    """Appends records to a file, in order, each whole or not at all.

    A record that does not fit on a full disk is cut off again and waits in memory, and those after
    it wait behind it. A process that is killed leaves at most its last record unfinished.
    """

    def __init__(self, path: Path):
        """Opens a file that ends with a whole record, made if missing."""
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self._size = os.fstat(self._file.fileno()).st_size
        self._waiting: deque[bytes] = deque()

    def add(self, record: bytes) -> None:
        """Puts a record behind those that wait."""
        self._waiting.append(record)

    def flush(self) -> None:
        """Hands all records to the system: they then survive the end of this process.

        Raises:
          OSError: not all of them; those left wait for the next call.
        """
        while self._waiting:
            left = memoryview(self._waiting[0])
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                with suppress(OSError):
                    self._file.truncate(self._size)
                raise
            self._size += len(self._waiting.popleft())

    def sync(self) -> None:
        """As `flush`, and waits until the disk has them: they then survive a power cut too."""
        self.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; what still waits is lost."""
        self._file.close()
