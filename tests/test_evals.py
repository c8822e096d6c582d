"""Zero-shot classification worked by hand, and the contract that every entry of EVALS keeps."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from vlrep_jax.evals import EVALS, EvalResult
from vlrep_jax.evals.zero_shot import class_embeddings, confusion, per_class_accuracy, zero_shot


def test_class_embedding_normalises_averages_normalises():
    """(3, 0) and (0, 1): normalised before the mean, both prompts count the same."""
    table = {"a cat": [3, 0], "the cat": [0, 1], "a dog": [0, -2], "the dog": [0, -1]}
    prompts = dict(class_names=["cat", "dog"], templates=["a {}", "the {}"])
    got = class_embeddings(lambda texts: np.array([table[t] for t in texts]), **prompts)
    np.testing.assert_allclose(got, [[0.5**0.5, 0.5**0.5], [0, -1]], rtol=1e-6)  # float32 rounding
    assert got.dtype == np.float32


def test_class_names_go_into_prompts_untouched():
    seen = []
    class_embeddings(lambda t: seen.extend(t) or np.ones((len(t), 2)), ["{0} & {x}"], ["a {}."])
    assert seen == ["a {0} & {x}."]


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0}"])
def test_template_needs_one_place_for_the_name(template):
    with pytest.raises(ValueError, match="exactly once"):
        class_embeddings(lambda t: np.ones((len(t), 2)), ["cat"], [template])


def test_zero_shot_hand_worked():
    """Class 0 gets 2 of 3 right, class 1 its only one, class 2 has none, one image is ignored."""
    classes = np.eye(3, dtype=np.float32)
    metrics = zero_shot(classes[[0, 0, 1, 1, 2]], [0, 0, 0, 1, -1], classes)
    assert metrics == {"top1": 0.75, "mean_per_class": pytest.approx((2 / 3 + 1) / 2)}


def test_top5_counts_from_six_classes():
    classes = np.eye(6, dtype=np.float32)
    image = np.array([[6, 5, 4, 3, 2, 1]] * 6, np.float32)
    metrics = zero_shot(image, np.arange(6), classes)
    assert metrics["top1"] == metrics["mean_per_class"] == 1 / 6
    assert metrics["top5"] == 5 / 6
    assert "top5" not in zero_shot(image[:, :5], [0] * 6, classes[:5, :5])


def test_confusion_and_per_class_accuracy_hand_worked():
    predictions = np.array([[0, 1], [1, 0], [1, 0], [0, 1]])
    assert confusion(predictions, [0, 0, 1, -1], 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    expected = [0.5, 1.0, np.nan]
    np.testing.assert_array_equal(per_class_accuracy(predictions, [0, 0, 1, -1], 3), expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1], r"expected \[3\]"), ([0, 1, 3], "there are 3 classes"), ([-1] * 3, "nothing to")],
)
def test_zero_shot_says_which_labels_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        zero_shot(np.eye(3), labels, np.eye(3))


def test_zero_shot_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        zero_shot(np.full((3, 3), np.nan), [0, 1, 2], np.eye(3))


# The contract of EVALS: hand-made data on which the score is known


class Classes(NamedTuple):
    class_names: list
    templates: list
    labels: np.ndarray


class Words:
    """A real encoder: a text is the direction of its last word, an image is given as one."""

    directions = {"red": 0, "green": 1, "blue": 2, "grey": 3}

    def __init__(self):
        self.images_encoded = 0

    def images(self, batches):
        rows = self._rows(batches)
        self.images_encoded += len(rows)
        return rows

    def _rows(self, batches):
        rows = [b["image"][np.asarray(b["weights"]) > 0] for b in batches]
        return np.concatenate(rows).astype(np.float32)

    def texts(self, texts):
        return np.eye(4, dtype=np.float32)[[self.directions[t.split()[-1]] for t in texts]]

    def image_tokens(self, batches):
        return self._rows(batches).argmax(axis=1)

    def text_tokens(self, texts):
        return np.array([self.directions[t.split()[-1]] for t in texts])

    def judge(self, image_tokens, text_tokens, images, texts):
        """Nearly sure that blue may be called grey; and grey is said often, whatever is shown."""
        logits = 9.0 * ((image_tokens[images] == 2) & (text_tokens[texts] == 3))
        told = np.where(text_tokens[texts] == 3, -1.0, -5.0)
        return np.stack([logits, told], axis=1)

    def scale(self):
        return 10.0

    def answers(self, batches, questions, blank=False):
        """The image's hue, whatever is asked; without the image always green."""
        hues = self._rows(batches).argmax(axis=1) if not blank else np.full(len(questions), 1)
        return [*self.directions], np.eye(4, dtype=np.float32)[hues]


class Squares:
    """Red, green, blue and grey squares in two batches, the second one padded."""

    captions = ["a red", "so red", "a green", "a grey", "a grey"]  # one blue is called grey
    image_of_caption = np.array([0, 0, 1, 2, 3])

    def image_batches(self):
        square = np.eye(4, dtype=np.float32)
        yield {"image": square[:3], "weights": np.ones(3)}
        yield {"image": square[[3, 0, 0]], "weights": np.array([1, 0, 0])}

    def class_set(self, name):
        labels = {"hue": [0, 1, 2, -1], "light": [0, 0, 0, 1]}[name]
        names = {"hue": ["red", "green", "blue"], "light": ["red", "grey"]}[name]
        return Classes(names, ["a {}", "one {}"], np.array(labels))


class Questions(Squares):
    """What the squares are asked; annotators see the blue one as grey, or do not agree."""

    captions = ("which hue?", "which hue?", "which hue?", "is it?")
    image_of_caption = np.arange(4)

    def labels(self, name):
        given = [["red"] * 10, ["green"] * 10, ["grey"] * 8 + ["Blue."] * 2, ["yes"] * 10]
        return {"answers": given, "question_type": ["hue", "hue", "hue", "yes/no"]}[name]


DATA = {"answers": Questions}  # of the other evaluations: Squares
# Those that embed each image once, for the next as well.
EMBEDDING = [name for name in EVALS if name != "answers"]


def data_of(name):
    return DATA.get(name, Squares)()


# By hand. Answers: red and green are right, "blue" is that of two annotators in ten, 0.6, and yes
# is no hue. Without the image green alone is right. One answer to all hues is right for one of
# three, or for all that the eight annotators say, 1; yes is right for its kind; grey for a quarter.
# Retrieval: image 2 (blue) scores all captions 0, so its own, number 3, is fourth; image 3
# ties its own caption with number 3: second. Caption 3 finds images 3, 0, 1, then its own: fourth.
# Zero-shot "light": blue and green tie between the two classes, and red is the lower index. All
# are right; the scale is 10, so red and grey are nearly sure of it, blue and green half.
# Again, with 9 more for blue and grey: image 2 finds its caption first of the four that are judged,
# caption 3 its image second (9 below 10), and nothing else moves.
RETRIEVAL = {
    "image_to_text_recall@1": 0.5,
    "image_to_text_recall@3": 0.75,
    "image_to_text_median_rank": 1.5,
    "text_to_image_recall@1": 0.8,
    "text_to_image_recall@3": 0.8,
    "text_to_image_median_rank": 1.0,
}
CONTRACT = {
    "answers": (
        {},
        {
            "accuracy": pytest.approx((1 + 1 + 0.6 + 0) / 4),
            "without_picture": 0.25,
            "majority": 0.5,
            "majority_overall": 0.25,
            "hue/accuracy": pytest.approx(2.6 / 3),
            "hue/without_picture": pytest.approx(1 / 3),
            "hue/majority": pytest.approx(1 / 3),
            "hue/questions": 3.0,
            "yes/no/accuracy": 0.0,
            "yes/no/without_picture": 0.0,
            "yes/no/majority": 1.0,
            "yes/no/questions": 1.0,
        },
    ),
    "rerank": (
        dict(ks=(1, 3), depth=4),
        {
            "image_to_text_recall@1": 0.75,
            "image_to_text_recall@3": 1.0,
            "image_to_text_median_rank": 1.0,
            "text_to_image_recall@1": 0.8,
            "text_to_image_recall@3": 1.0,
            "text_to_image_median_rank": 1.0,
        }
        | {f"towers/{name}": value for name, value in RETRIEVAL.items()},
    ),
    "retrieval": (dict(ks=(1, 3)), RETRIEVAL),
    "zero_shot": (
        dict(sets=("hue", "light")),
        {
            "top1": 1.0,
            "hue/top1": 1.0,
            "hue/mean_per_class": 1.0,
            "light/top1": 1.0,
            "light/mean_per_class": 1.0,
            "hue/ece": pytest.approx(1 - 1 / (1 + 2 * np.exp(-10)), abs=1e-6),  # float32
            "light/ece": pytest.approx(0.25 + (1 - 1 / (1 + np.exp(-10))) / 2, abs=1e-6),
        },
    ),
}


def test_contract_covers_every_evaluation():
    assert set(CONTRACT) == set(EVALS)


@pytest.mark.parametrize("name", EVALS)
def test_evaluation_has_the_known_score(name):
    options, expected = CONTRACT[name]
    result = EVALS[name](Words(), data_of(name), **options)
    assert isinstance(result, EvalResult)
    assert result.metrics == expected
    assert all(type(value) is float for value in result.metrics.values())
    assert name not in EMBEDDING or result.details["image"].shape == (4, 4)


@pytest.mark.parametrize("name", EMBEDDING)
def test_evaluation_takes_embedded_images(name):
    options, expected = CONTRACT[name]
    first, encoder = EVALS[name](Words(), Squares(), **options), Words()
    again = EVALS[name](encoder, Squares(), image=first.details["image"], **options)
    assert again.metrics == expected and encoder.images_encoded == 0


@pytest.mark.parametrize("devices", [2, 8])
@pytest.mark.parametrize("name", EVALS)
def test_evaluation_runs_on_a_mesh(name, devices):
    options, expected = CONTRACT[name]
    mesh = jax.make_mesh(
        (devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,)
    )
    options = options | dict(mesh=mesh) | (dict(chunk=3) if name in EMBEDDING else {})
    assert EVALS[name](Words(), data_of(name), **options).metrics == expected


@pytest.mark.parametrize("name", EMBEDDING)
def test_evaluation_of_a_diverged_model_is_an_error(name):
    encoder = Words()
    encoder.texts = lambda texts: np.full((len(texts), 4), np.nan)
    with pytest.raises(ValueError, match="NaN"):
        EVALS[name](encoder, Squares(), **CONTRACT[name][0])


def test_what_lies_below_the_depth_keeps_its_place():
    options = dict(ks=(1, 3), depth=3)
    metrics = EVALS["rerank"](Words(), Squares(), **options).metrics
    # Image 2's caption and caption 3's image are fourth: they are not judged.
    assert {name: metrics[name] for name in RETRIEVAL} == RETRIEVAL


def test_likelihoods_of_texts_hand_worked():
    """A text counts by how much likelier a picture makes it, not by how likely it is of any."""
    encoder, options = Words(), dict(ks=(1,), depth=4)
    # log p(text | picture) / 1000: two texts are likely of everything; one of pictures 1 and 3.
    told = np.array(
        [[0, -9, -9, -9, 0], [0, -1, -9, -9, 0], [0, -9, -1, -9, 0], [0, -1, -9, -1, 0]]
    )

    def judge(image_tokens, text_tokens, images, texts):
        return np.stack([np.zeros(len(images)), 1e3 * told[images, texts]], axis=1)

    encoder.judge = judge
    order = EVALS["rerank"](encoder, Squares(), **options).details["order"]
    assert order["image_to_text"][:, 0].tolist() == [0, 1, 2, 3]
    assert order["text_to_image"][:, 0].tolist() == [0, 1, 2, 3, 3]
    plain = EVALS["rerank"](encoder, Squares(), captions=0.0, **options).details["order"]
    encoder.judge = lambda *pairs: np.zeros((len(pairs[-1]), 1))
    for side, ranked in EVALS["rerank"](encoder, Squares(), **options).details["order"].items():
        np.testing.assert_array_equal(plain[side], ranked)
    with pytest.raises(ValueError, match="prior=0 must be at least 1"):
        EVALS["rerank"](encoder, Squares(), prior=0, **options)


def test_a_judgement_weighs_what_it_is_told():
    encoder, options, judge = Words(), dict(ks=(1,), depth=4), Words().judge
    towers = EVALS["retrieval"](encoder, Squares(), ks=(1,)).metrics
    found = EVALS["rerank"](encoder, Squares(), matching=0.0, **options).metrics
    assert {name: found[name] for name in towers} == towers
    half = EVALS["rerank"](encoder, Squares(), matching=0.5, **options).details["order"]
    encoder.judge = lambda *pairs: judge(*pairs) / 2
    whole = EVALS["rerank"](encoder, Squares(), **options).details["order"]
    for side, order in half.items():
        np.testing.assert_array_equal(order, whole[side])


def test_a_diverged_judge_is_an_error():
    encoder = Words()
    encoder.judge = lambda *pairs: np.full((len(pairs[-1]), 1), np.nan)
    with pytest.raises(ValueError, match="16 of 16 judgements are NaN"):
        EVALS["rerank"](encoder, Squares(), ks=(1,), depth=4)
    encoder.answers = lambda *_, blank=False: (["a"], np.full((4, 1), np.nan))
    with pytest.raises(ValueError, match="An answer's logit is NaN"):
        EVALS["answers"](encoder, Questions())


def test_captions_that_are_no_questions_are_an_error():
    with pytest.raises(ValueError, match="one caption, a question"):
        EVALS["answers"](Words(), Squares())


def test_zero_shot_details_name_each_set():
    details = EVALS["zero_shot"](Words(), Squares(), sets="hue").details["sets"]
    assert list(details) == ["hue"]
    assert details["hue"]["class_names"] == ["red", "green", "blue"]
    assert details["hue"]["per_class"].tolist() == [1, 1, 1]
    assert details["hue"]["predictions"].shape == (4, 3)


def test_zero_shot_without_a_set_is_an_error():
    with pytest.raises(ValueError, match="name at least one"):
        EVALS["zero_shot"](Words(), Squares(), sets=())
