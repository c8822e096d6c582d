"""Questions about pictures in VQA's files: one sample a question, with its annotators' answers."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence

from vlrep_jax.data.sources.reading import read_bytes
from vlrep_jax.data.sources.sample import Sample, key_hashes
from vlrep_jax.data.sources.values import BadRow


class Vqa:
    """Questions of VQAv2's JSON files, or of files like them; the caption is the question.

    Labels: answers (tuple of the annotators', empty without annotations), answer_type,
    question_type, image_id. The key is the question's id.

    Args:
        questions: JSON file with `questions`: question_id, image_id and question of each.
        images: directory of the pictures.
        annotations: JSON file with `annotations`: question_id, answers [{"answer": ...}],
            answer_type and question_type of each; '' where the answers are not known.
        image: name of a picture's file, with {image_id} (an int, so {image_id:012d}) and
            {data_subtype} of the questions' file.

    Raises:
        FileNotFoundError: there is no such file or directory.
        ValueError: a file is no such JSON, a question has no annotation, none with answers or one
            of another picture, or `image` has another field.
    """

    def __init__(
        self,
        questions: str | os.PathLike,
        images: str | os.PathLike,
        *,
        annotations: str | os.PathLike = "",
        image: str = "COCO_{data_subtype}_{image_id:012d}.jpg",
    ):
        self._images = os.path.abspath(os.path.expanduser(images))
        if not os.path.isdir(self._images):
            raise FileNotFoundError(f"images={images} is not a directory of pictures.")
        held, digest = _read(questions, "questions")
        answered, other = _read(annotations, "annotations") if annotations else ({}, "")
        subtype = held.get("data_subtype", "")
        by_id = {}
        for row in answered.get("annotations", ()):
            if by_id.setdefault(row.get("question_id"), row) is not row:
                raise ValueError(f"{annotations} has question {row.get('question_id')} twice.")
        self._rows = []
        for row in held["questions"]:
            try:
                key, question = str(row["question_id"]), str(row["question"])
                name = image.format(image_id=row["image_id"], data_subtype=subtype)
                found = by_id[row["question_id"]] if annotations else {"answers": ()}
                answers = tuple(str(one["answer"]) for one in found["answers"])
                if annotations and not answers:
                    raise ValueError("its annotation has no answers")
                if found.get("image_id", row["image_id"]) != row["image_id"]:
                    raise ValueError(f"its annotation is of image {found['image_id']}")
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise ValueError(
                    f"Question {row.get('question_id')} of {questions}: {type(error).__name__} "
                    f"{error}; expected question_id, question, an image_id that image={image!r} "
                    f"can name, and an annotation with answers in {annotations or 'no file'}."
                ) from None
            types = (str(found.get(name, "")) for name in ("answer_type", "question_type"))
            self._rows.append((key, name, question, answers, *types))
        self._ids = [row["image_id"] for row in held["questions"]]
        self._digest = hashlib.sha256(f"{digest} {other} {image}".encode()).hexdigest()

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        key, name, question, answers, answer_type, question_type = self._rows[index]
        labels = {
            "answers": answers,
            "answer_type": answer_type,
            "question_type": question_type,
            "image_id": self._ids[index],
        }
        try:
            picture = read_bytes(self._images, name)
        except BadRow as error:
            return Sample(b"", (question,), key, labels, problem=error.reason)
        return Sample(picture, (question,), key, labels)

    def __getitems__(self, indices):
        return [self[int(index)] for index in indices]

    def key_hashes(self):
        """uint64[n], as `sample.key_hashes`."""
        return key_hashes(row[0] for row in self._rows)

    def fingerprint(self):
        """Stable hash of the files' contents and of how pictures are named."""
        return self._digest


def most_common_answers(annotations: str | os.PathLike, count: int) -> Sequence[str]:
    """The answers that most annotators gave, normalised, the commonest first: a model's answers.

    Args:
        annotations: JSON file as of `Vqa`.
        count: how many; 3,129 is usual for VQAv2.
    """
    from collections import Counter

    from vlrep_jax.answers import normalize

    held, _ = _read(annotations, "annotations")
    rows = (row["answers"] for row in held["annotations"])
    counts = Counter(normalize(one["answer"]) for row in rows for one in row)
    counts.pop("", None)
    # By name among equals, so that no order of a file matters.
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:count])


def _read(path, name):
    """(the object of a JSON file that has a list of objects of a name, hash of the file)."""
    path = os.path.expanduser(path)
    with open(path, "rb") as file:
        data = file.read()
    try:
        held = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    rows = held.get(name) if isinstance(held, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{path} has no list {name!r} of objects, as VQA's files have.")
    return held, hashlib.sha256(data).hexdigest()
