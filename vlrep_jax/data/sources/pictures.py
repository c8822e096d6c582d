"""Picture files without captions."""

from collections.abc import Sequence
from pathlib import Path

from vlrep_jax.data.sources.sample import Sample


class Pictures:
    """Picture files without captions, such as a user's own to embed; the key is the path."""

    def __init__(self, paths: Sequence[str]):
        self.paths = tuple(map(str, paths))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        try:
            return Sample(Path(path).read_bytes(), (), path, {})
        except OSError:
            return Sample(b"", (), path, {}, problem="missing")

    def __getitems__(self, indices):
        return [self[int(index)] for index in indices]
