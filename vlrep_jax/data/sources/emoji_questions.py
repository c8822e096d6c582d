"""Questions about the quick start's pictures."""

import os

from vlrep_jax.data.sources.vqa import Vqa


class EmojiQuestions(Vqa):
    """Questions about emoji and scenes of them; made in `data_dir` when missing.

    Splits: `train` and `unseen`, see `data/emoji_questions.py`. Samples as of `Vqa`; all annotators
    agree.

    Args:
        data_dir: of TFDS data sets.
        split: one of the above.

    Raises:
        ValueError: there is no such split.
    """

    def __init__(self, data_dir: str | os.PathLike, split: str):
        from vlrep_jax.data import emoji_questions

        if split not in emoji_questions.SPLITS:
            raise ValueError(f"split={split!r} must be one of {', '.join(emoji_questions.SPLITS)}.")
        path = emoji_questions.prepare(data_dir)
        super().__init__(
            path / f"{split}_questions.json",
            path / split,
            annotations=path / f"{split}_annotations.json",
            image="{image_id:06d}.png",
        )
