"""Zero-shot class sets that the labels of a source give; `ZERO_SHOT_SETS` lists them."""

from functools import partial
from typing import NamedTuple

import numpy as np

from vlrep_jax.data.class_files import in_order, names_of, read_templates
from vlrep_jax.data.emoji_names import TONES
from vlrep_jax.data.sources.moving import MOTIONS


class ZeroShotSet(NamedTuple):
    """A classification task in words.

    Attributes:
        class_names: c names, or several names of a class.
        templates: prompts with one `{}` for a class name; their embeddings are averaged.
        labels: int32[n], the class of each sample of the source; -1 where it has none.
    """

    class_names: tuple[str | tuple[str, ...], ...]
    templates: tuple[str, ...]
    labels: np.ndarray


_GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)


def skin_tone(source):
    """The five skin tones, over the emoji that show exactly one."""
    names = tuple(f"{tone} skin tone" for tone in TONES)
    templates = ("{}", "person: {}", "man: {}", "woman: {}", "hand: {}", "an icon of person: {}")
    return ZeroShotSet(names, templates, _labels(source, "skin_tone", TONES))


def group(source):
    """The nine Unicode groups of emoji."""
    names = tuple(name.replace("&", "and").lower() for name in _GROUPS)
    templates = ("{}", "emoji, {}", "a picture, {}", "an icon, {}", "a drawing, {}")
    return ZeroShotSet(names, templates, _labels(source, "group", _GROUPS))


def of_files(source, *, label="label", classes="", templates=""):
    """The classes that a label of any source gives, in words from files.

    Args:
        label: of the samples; its values, in order, are the classes. None is no class.
        classes: file of their names, see `class_files.names_of`; '' where the values are names.
        templates: file of prompts, see `class_files.read_templates`; '' for the plain name.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: the source has no such label, or a file does not fit.
    """
    samples = source.__getitems__(range(len(source)))
    if samples and label not in samples[0].labels:
        raise ValueError(f"The source has no label {label!r}; it has {sorted(samples[0].labels)}.")
    values = in_order({sample.labels[label] for sample in samples} - {None})
    names = names_of([str(value) for value in values], classes or None)
    prompts = read_templates(templates) if templates else ("{}",)
    return ZeroShotSet(tuple(names), tuple(prompts), _labels(source, label, values))


def motion(source, motions=MOTIONS):
    """How clips of the source `moving` move."""
    return ZeroShotSet(
        motions, ("{}", "a picture {}", "person {}"), _labels(source, "motion", motions)
    )


# Of two ways that differ only in the order of their frames.
ZERO_SHOT_SETS = {
    "skin_tone": skin_tone,
    "group": group,
    "motion": motion,
    "left_right": partial(motion, motions=MOTIONS[:2]),
    "up_down": partial(motion, motions=MOTIONS[2:4]),
    "growing_shrinking": partial(motion, motions=MOTIONS[4:]),
}


def _labels(source, label, classes):
    numbers = {name: number for number, name in enumerate(classes)}
    samples = source.__getitems__(range(len(source)))
    if samples and label not in samples[0].labels:
        raise ValueError(f"The source has no label {label!r}; it has {sorted(samples[0].labels)}.")
    return np.asarray([numbers.get(sample.labels[label], -1) for sample in samples], np.int32)
