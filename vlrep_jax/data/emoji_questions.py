"""`emoji_questions`: questions about emoji and small scenes of them, in VQAv2's files.

Everything that is asked follows from what the pictures are known by: Unicode group, colour word,
skin tone, name, and how a scene was put together. `unseen` asks of concepts that `train` has no
picture of; its pictures are Twemoji's, of `train` also OpenMoji's. Graphics: see `emoji_captions`.
"""

import io
import json
import os
import re
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vlrep_jax.data.decoding import decode
from vlrep_jax.data.emoji_names import TONES

NAME, VERSION = "emoji_questions", "1.0.0"
SPLITS = ("train", "unseen")
COUNTS = {"train": 12_586, "unseen": 1136}
GROUPS = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
COLOURS = {
    "red": (221, 46, 68),
    "orange": (244, 144, 12),
    "yellow": (253, 203, 88),
    "green": (120, 177, 89),
    "blue": (85, 172, 238),
    "purple": (170, 142, 214),
    "brown": (193, 105, 79),
    "black": (49, 55, 61),
    "white": None,
    "grey": None,
    "pink": None,
}
FRAMES = tuple(name for name, rgb in COLOURS.items() if rgb)
MOST = 5  # pictures in a scene
ANSWERS = (
    *GROUPS.values(),
    *COLOURS,
    *TONES,
    *map(str, range(1, MOST + 1)),
    "yes",
    "no",
)
# How often each kind is asked of a concept; a concept of many skin tones would be half of all else.
_PER_CONCEPT = {"group": 3, "skin tone": 8, "color": 8, "yes/no": 4, "count": 2, "frame": 1}
_ANNOTATORS = 10
_SIDE, _CELL, _FRAME = 72, 24, 10  # pixels of a picture, of a copy in a scene, of a frame
_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)}) (?:(?:large|medium-small|medium|small) )?([a-z]+)")


def prepare(data_dir, *, progress=print):
    """Returns the directory of the questions, after making it where it is missing.

    It holds, for each of SPLITS, SPLIT_questions.json, SPLIT_annotations.json and pictures in
    SPLIT/.

    Args:
        data_dir: directory of TFDS data sets; `emoji_captions` is prepared there too.
        progress: called with a line of text when there is work to do.

    Raises:
        ModuleNotFoundError: the packages of the extra `quickstart` are missing.
        ValueError: what was prepared there is something else.
    """
    from vlrep_jax.data.sources.emoji import EmojiCaptions

    path = Path(data_dir).expanduser().absolute() / NAME / VERSION
    if not path.exists():
        samples = {split: _samples(EmojiCaptions(data_dir, split)) for split in SPLITS}
        progress(f"preparing {NAME} in {path} ...")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed: whatever stands at `path` is complete, the first writer wins.
        with tempfile.TemporaryDirectory(prefix=".making-", dir=path.parent) as aside:
            made = Path(aside) / VERSION
            for split in SPLITS:
                _write(made, split, samples[split])
            try:
                os.rename(made, path)
            except OSError:
                if not path.exists():
                    raise
    for split, count in COUNTS.items():
        held = json.loads((path / f"{split}_annotations.json").read_text(encoding="utf-8"))
        if len(held["annotations"]) != count:
            raise ValueError(
                f"{path} holds {len(held['annotations'])} questions in {split!r}, expected {count}."
                " Delete it and run again to prepare it anew."
            )
    return path


def _samples(source):
    return source.__getitems__(range(len(source)))


class _Asked:
    """The questions of a split as they are made, with their pictures."""

    def __init__(self, folder, split, rng):
        self._folder, self._split, self.rng = folder, split, rng
        self.questions, self.annotations, self._pictures = [], [], 0
        self._numbers = {}
        (folder / split).mkdir(parents=True)

    def picture(self, png, key=None):
        """The image_id of a picture; one of a key that was there before is not written again."""
        if key is not None and key in self._numbers:
            return self._numbers[key]
        number, self._pictures = self._pictures, self._pictures + 1
        (self._folder / self._split / f"{number:06d}.png").write_bytes(png)
        self._numbers[key] = number
        return number

    def ask(self, kind, image_id, question, answer):
        about = {"question_id": len(self.questions), "image_id": image_id}
        answer_type = {"yes/no": "yes/no", "count": "number"}.get(kind, "other")
        self.questions.append({**about, "question": question})
        answers = [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number + 1}
            for number in range(_ANNOTATORS)
        ]
        self.annotations.append(
            {**about, "question_type": kind, "answer_type": answer_type, "answers": answers}
            | {"multiple_choice_answer": answer}
        )

    def write(self):
        about = {"data_type": "mscoco", "data_subtype": self._split}
        for name in ("questions", "annotations"):
            held = json.dumps({**about, name: getattr(self, name)})
            path = self._folder / f"{self._split}_{name}.json"
            path.write_text(held, encoding="utf-8")


def _write(folder, split, samples):
    asked = _Asked(folder, split, np.random.default_rng(SPLITS.index(split)))
    concepts = defaultdict(list)
    for sample in samples:
        if sample.labels["group"] in GROUPS:
            concepts[sample.labels["concept"]].append(sample)
    names = sorted(concepts)
    for concept in names:
        own = [concepts[concept][i] for i in asked.rng.permutation(len(concepts[concept]))]
        for kind, often in _PER_CONCEPT.items():
            about = [sample for sample in own if _asks(kind, sample)]
            for number in range(often if kind in ("count", "frame") else min(often, len(about))):
                other = partial(_other, asked.rng, concepts, names, concept)
                _QUESTIONS[kind](asked, about[number % len(about)], number, other)
    asked.write()


def _other(rng, concepts, names, concept):
    """A picture of another concept."""
    while True:
        name = names[rng.integers(len(names))]
        if name != concept:
            return concepts[name][rng.integers(len(concepts[name]))]


def _asks(kind, sample):
    if kind == "skin tone":
        return sample.labels["skin_tone"] in TONES
    return kind != "color" or len(_COLOUR.findall(sample.captions[0].lower())) == 1


def _group(asked, sample, number, other):
    question = "what kind of thing is this?"
    asked.ask("group", _single(asked, sample), question, GROUPS[sample.labels["group"]])


def _tone(asked, sample, number, other):
    question = "what is the skin tone?"
    asked.ask("skin tone", _single(asked, sample), question, sample.labels["skin_tone"])


def _color(asked, sample, number, other):
    ((colour, noun),) = _COLOUR.findall(sample.captions[0].lower())
    asked.ask("color", _single(asked, sample), f"what color is the {noun}?", colour)


def _yes_no(asked, sample, number, other):
    """By name or by group in turn; as often of another one as of its own."""
    said, is_own = sample, bool(asked.rng.integers(2))
    if number % 2:
        while not is_own and said.labels["group"] == sample.labels["group"]:
            said = other()
        question = f"does this show {GROUPS[said.labels['group']]}?"
    else:
        question = f"is this {(sample if is_own else other()).captions[0]}?"
    asked.ask("yes/no", _single(asked, sample), question, "yes" if is_own else "no")


def _count(asked, sample, number, other):
    count = int(asked.rng.integers(1, MOST + 1))
    copy = Image.fromarray(decode(sample.image)).resize((_CELL - 2,) * 2, Image.Resampling.LANCZOS)
    scene = Image.new("RGB", (_SIDE, _SIDE), "white")
    for cell in asked.rng.permutation((_SIDE // _CELL) ** 2)[:count]:
        row, column = divmod(int(cell), _SIDE // _CELL)
        shift = asked.rng.integers(0, 3, 2)
        scene.paste(copy, (column * _CELL + int(shift[0]), row * _CELL + int(shift[1])))
    asked.ask("count", asked.picture(_png(scene)), "how many are there?", str(count))


def _frame(asked, sample, number, other):
    colour = FRAMES[asked.rng.integers(len(FRAMES))]
    inner = _SIDE - 2 * _FRAME
    scene = Image.new("RGB", (_SIDE, _SIDE), COLOURS[colour])
    picture = Image.fromarray(decode(sample.image))
    scene.paste(picture.resize((inner, inner), Image.Resampling.LANCZOS), (_FRAME, _FRAME))
    asked.ask("frame", asked.picture(_png(scene)), "what color is the frame?", colour)


_QUESTIONS = {
    "group": _group,
    "skin tone": _tone,
    "color": _color,
    "yes/no": _yes_no,
    "count": _count,
    "frame": _frame,
}


def _single(asked, sample):
    return asked.picture(sample.image, sample.key)


def _png(image):
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=3)
    return out.getvalue()
