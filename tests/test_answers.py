"""VQA's accuracy and its normalisation of answers, by hand; its files; answers as an evaluation."""

import json

import numpy as np
import pytest
from emoji_data import flat

from vlrep_jax.answers import accuracies, accuracy, normalize
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.data.sources.vqa import most_common_answers


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A dog", "dog"),
        ("the An a", ""),
        ("  Two\tDogs\n", "2 dogs"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("couldnt've, couldn'tve", "couldn't've couldn't've"),
        ("yall'dve", "yall'dve"),  # two are missing
        ("twas oclock maam", "'twas o'clock ma'am"),
        ("somebody'd", "somebodyd"),  # the original's table has this one the other way round
        ("well its hell", "well its hell"),  # no contractions, though they look it
        # Inside a word a mark is a space, beside a space it is nothing.
        ("black/white", "black white"),
        ("black/ white", "black white"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),
        ("yes!", "yes"),
        # With a thousand in the text every mark is nothing.
        ("1,000 t-shirts", "1000 tshirts"),
        ("3.5", "3.5"),
        ("u.s.", "us"),
        ("v.2 mr. x", "v.2 mr x"),
        ("what's?", "what's"),
    ],
)
def test_an_answer_is_normalised_as_by_hand(answer, expected):
    assert normalize(answer) == expected


@pytest.mark.parametrize(("given", "expected"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_an_answer_of_some_of_ten_annotators_has_its_share(given, expected):
    """Of two: without one of them 1 / 3, twice, without anyone else 2 / 3, eight times: 6 / 10."""
    answers = ["two"] * given + [f"other {i}" for i in range(10 - given)]
    assert accuracy("2", answers) == pytest.approx(expected)
    assert accuracies(answers)["2"] == pytest.approx(expected)
    assert accuracy("three", answers) == 0


def test_what_all_agree_on_is_compared_to_the_letter():
    """The original normalises only where annotators differ."""
    assert accuracy("The dog", ["The dog"] * 10) == 1
    assert accuracy("dog", ["The dog"] * 10) == 0
    assert accuracy("dog", ["The dog"] * 9 + ["cat"]) == 1
    assert accuracy(" yes\n", ["yes"] * 10) == 1


# Files.


def write_files(folder, **changed):
    """Three questions about two pictures, in VQAv2's form."""
    rows = [(10, 7, "What?", "red"), (11, 7, "How many?", "2"), (12, 9, "Is it?", "yes")]
    for image_id in (7, 9):
        (folder / f"COCO_val2014_{image_id:012d}.jpg").write_bytes(flat(image_id))
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text, _ in rows]
    annotations = [
        {
            "question_id": question,
            "image_id": image,
            "question_type": "what",
            "answer_type": "other",
            "multiple_choice_answer": answer,
            "answers": [{"answer": answer, "answer_id": n + 1} for n in range(9)]
            + [{"answer": "The two", "answer_id": 10}],
        }
        # In another order: they are found by their id.
        for question, image, _, answer in reversed(rows)
    ]
    held = {"data_subtype": "val2014", "questions": questions, "annotations": annotations}
    for name in ("questions", "annotations"):
        part = {"data_subtype": "val2014", name: held[name]} | changed.get(name, {})
        (folder / f"{name}.json").write_text(json.dumps(part))
    return {
        "questions": str(folder / "questions.json"),
        "annotations": str(folder / "annotations.json"),
        "images": str(folder),
    }


def test_vqas_files_are_read(tmp_path):
    paths = write_files(tmp_path)
    source = SOURCES["vqa"](**paths)
    assert len(source) == 3
    first, _, last = source.__getitems__([0, 1, 2])
    assert (first.key, first.captions, first.image) == ("10", ("What?",), flat(7))
    assert first.labels == {
        "answers": ("red",) * 9 + ("The two",),
        "answer_type": "other",
        "question_type": "what",
        "image_id": 7,
    }
    assert (last.labels["answers"][0], last.image) == ("yes", flat(9))
    assert len(set(source.key_hashes())) == 3
    alone = SOURCES["vqa"](**paths | {"annotations": ""})
    assert alone[0].labels["answers"] == () and alone[0].captions == ("What?",)
    assert alone.fingerprint() != source.fingerprint()
    (tmp_path / "COCO_val2014_000000000009.jpg").unlink()
    assert source[2].problem == "missing"
    # "two" three times, the others nine.
    assert most_common_answers(paths["annotations"], 2) == ("2", "red")


def test_files_that_are_something_else_are_refused_in_one_line(tmp_path):
    paths = write_files(tmp_path)
    for changed, error, message in (
        ({"images": f"{tmp_path}/none"}, FileNotFoundError, "images=.*none is not a directory"),
        ({"image": "{key}.jpg"}, ValueError, "Question 10 of .*expected .*an image_id that image="),
        ({"annotations": paths["questions"]}, ValueError, "has no list 'annotations'"),
        ({"questions": paths["annotations"]}, ValueError, "has no list 'questions'"),
    ):
        with pytest.raises(error, match=message):
            SOURCES["vqa"](**paths | changed)
    paths = write_files(tmp_path, annotations={"annotations": []})
    with pytest.raises(ValueError, match=r"Question 10 of .* an annotation with answers in"):
        SOURCES["vqa"](**paths)
    annotation = {"question_id": 10, "image_id": 7, "answers": [{"answer": "red"}]}
    for rows, message in (
        ([annotation, annotation], "has question 10 twice"),
        ([annotation | {"answers": []}], "Question 10 of .*its annotation has no answers"),
        ([{"question_id": 10}], "Question 10 of .*KeyError 'answers'"),
        ([annotation | {"image_id": 8}], "Question 10 of .*its annotation is of image 8"),
    ):
        paths = write_files(tmp_path, annotations={"annotations": rows})
        with pytest.raises(ValueError, match=message):
            SOURCES["vqa"](**paths)
    paths = write_files(tmp_path, questions={"questions": [{"question_id": 1, "image_id": 7}]})
    with pytest.raises(ValueError, match=r"Question 1 of .*KeyError 'question'"):
        SOURCES["vqa"](**paths)
    (tmp_path / "questions.json").write_text("{")
    with pytest.raises(ValueError, match=r"questions\.json is not JSON"):
        SOURCES["vqa"](**paths)


def test_training_batches_hold_what_each_answer_would_get(tmp_path):
    from vlrep_jax.data.caption_choice import CAPTIONS
    from vlrep_jax.data.loading import TrainLoader
    from vlrep_jax.data.tokenizers import train_bpe
    from vlrep_jax.data.transforms import TRANSFORMS

    source = SOURCES["vqa"](**write_files(tmp_path))

    def transform(image, rng):
        return TRANSFORMS["squash"](image, rng, size=8)

    tokenizer = train_bpe(["what how many is it"] * 9, 300)
    options = (tokenizer, 8, 0, 10**6, False, "pillow", 1)
    load = TrainLoader(source, transform, CAPTIONS["first"], *options, ("yes", "2", "dog"))
    batch, _ = load(0, [0, 1, 2])
    np.testing.assert_allclose(batch["answers"], [[0, 0.3, 0], [0, 1, 0], [1, 0.3, 0]])
    batch, _ = TrainLoader(source, transform, CAPTIONS["first"], *options)(0, [0])
    assert "answers" not in batch
    untold = SOURCES["vqa"](**write_files(tmp_path) | {"annotations": ""})
    with pytest.raises(ValueError, match=r"and 10 of the source has none; .*annotations=FILE"):
        TrainLoader(untold, transform, CAPTIONS["first"], *options, ("yes",))(0, [0])
