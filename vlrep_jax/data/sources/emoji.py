"""The quick start's pictures: emoji of two artists, with their Unicode names."""

import hashlib
import os

import numpy as np

from vlrep_jax.data.sources.tfds import Tfds


class EmojiCaptions(Tfds):
    """Twemoji and OpenMoji pictures with their names; prepared in `data_dir` when missing.

    Splits: `train`, `unseen` and `unseen_motifs` (Twemoji), `unseen_openmoji`; see
    `emoji_captions.py`. The one caption of a sample is its plain name. Labels: aliases (tuple),
    concept, motif, skin_tone, group, subgroup, artist, codepoints. The same emoji by two artists
    has one identity.

    Args:
        data_dir: of TFDS data sets.
        split: one of the above.
        twemoji_repeats: how often an epoch shows each of Twemoji's pictures, OpenMoji's being once.
    """

    LABELS = (
        "aliases",
        "artist",
        "codepoints",
        "concept",
        "group",
        "motif",
        "skin_tone",
        "subgroup",
    )

    def __init__(self, data_dir: str | os.PathLike, split: str, *, twemoji_repeats: int = 1):
        from vlrep_jax.data import emoji_captions

        super().__init__(
            emoji_captions.prepare(data_dir),
            split,
            captions="name",
            key="key",
            labels={label: label for label in self.LABELS},
        )
        self._repeats = twemoji_repeats
        self._record_of = np.arange(super().__len__())
        if twemoji_repeats != 1:
            records = super().__getitems__(self._record_of)
            times = [twemoji_repeats if r.labels["artist"] == "twemoji" else 1 for r in records]
            self._record_of = np.repeat(self._record_of, times)

    def __len__(self):
        return len(self._record_of)

    def __getitems__(self, indices):
        return super().__getitems__(self._record_of[np.asarray(indices, int)])

    def _sample(self, index, example):
        sample = super()._sample(index, example)
        return sample._replace(identity=sample.labels["codepoints"])

    def fingerprint(self):
        """As of `Tfds`, and of the repeats."""
        return hashlib.sha256(f"{super().fingerprint()} {self._repeats}".encode()).hexdigest()
