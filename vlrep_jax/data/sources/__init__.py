"""Random-access sources of encoded pictures with captions; `SOURCES` lists them.

A source holds no open file when it is pickled, needs no TensorFlow, and never decodes a picture
(but `Moving`, which composes clips of pictures).
"""

from collections.abc import Sequence

import numpy as np

from vlrep_jax.data.sources.emoji import EmojiCaptions
from vlrep_jax.data.sources.emoji_questions import EmojiQuestions
from vlrep_jax.data.sources.files import Files
from vlrep_jax.data.sources.folder import Folder
from vlrep_jax.data.sources.mixture import Mixture
from vlrep_jax.data.sources.moving import Moving
from vlrep_jax.data.sources.pictures import Pictures
from vlrep_jax.data.sources.sample import Sample
from vlrep_jax.data.sources.sections import source_of
from vlrep_jax.data.sources.subset import Subset
from vlrep_jax.data.sources.tar import Tar
from vlrep_jax.data.sources.tfds import Tfds
from vlrep_jax.data.sources.vqa import Vqa

__all__ = [
    "SOURCES",
    "EmojiCaptions",
    "EmojiQuestions",
    "Pictures",
    "Sample",
    "Tar",
    "Tfds",
    "Vqa",
    "captions",
    "source_of",
]

SOURCES = {
    "emoji_captions": EmojiCaptions,
    "emoji_questions": EmojiQuestions,
    "files": Files,
    "folder": Folder,
    "mixture": Mixture,
    "moving": Moving,
    "subset": Subset,
    "tar": Tar,
    "tfds": Tfds,
    "vqa": Vqa,
}


def captions(source: Sequence[Sample]):
    """Every caption of every sample.

    Returns:
        A list of m texts, and int32[m], the index of the sample that each belongs to.
    """
    texts, owners = [], []
    for start in range(0, len(source), 1024):
        indices = range(start, min(start + 1024, len(source)))
        for index, sample in zip(indices, source.__getitems__(indices), strict=True):
            texts.extend(sample.captions)
            owners.extend([index] * len(sample.captions))
    return texts, np.asarray(owners, np.int32)
