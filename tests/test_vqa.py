"""`vlrep vqa` on a model that ranks answers and on one that was trained to answer; the page."""

import json

import numpy as np
import pytest
from emoji_data import encoded, noise
from test_weights_commands import called
from tiny_models import FUSED, IMAGES, TOKENS, drawn
from tiny_pretrained import CLIP, pretrained

from vlrep_jax import models, vqa, weights
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.tokenizers import ClipTokenizer, train_bpe
from vlrep_jax.report import write_answers
from vlrep_jax.scores import scores

ANSWERS = ("yes", "no", "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vqa")
    weights.save(path / "clip", pretrained(CLIP, ClipTokenizer()), "openclip")
    section = {"name": "fusion_encoder", **FUSED, "answers": list(ANSWERS)}
    text = FUSED["text"] | {"vocab_size": 300}
    model = models.create(**section | {"text": text})
    params = drawn(model, IMAGES, TOKENS)
    preprocess = Preprocess(8)
    sections = {"model": section | {"text": text}, "image": preprocess.section()}
    tokenizer = train_bpe(["how many is it a dog"] * 9, 300)
    loaded = weights.Pretrained(model, params, preprocess, tokenizer, sections)
    weights.save(path / "answers", loaded, "vlrep")
    (path / "picture.png").write_bytes(encoded(noise(50, 50)))
    return path


def ask(capsys, folder, model, *words, code=0):
    image = f"--image={folder / 'picture.png'}"
    found, out = called(capsys, "vqa", f"--model={folder / model}", image, *words)
    assert found == code, out.err
    return out.err if code else out.out


def test_any_model_ranks_answers_put_into_prompts(folder, capsys):
    words = ["--question=is it a dog?", "--answers=yes, no,two"]
    found = json.loads(ask(capsys, folder, "clip", *words, "--json"))
    assert found["question"] == "is it a dog?" and found["answers"].keys() == set(ANSWERS)
    clip = weights.load(folder / "clip")
    image = clip.encode_image([folder / "picture.png"])
    prompts = [(answer, f"is it a dog? {answer}") for answer in ANSWERS]
    rows = np.array([clip.encode_text(pair).sum(axis=0) for pair in prompts])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scale, bias = clip.model.apply({"params": clip.params}, method="scale_and_bias")
    expected = scores(image, rows, scale, bias)[0]
    np.testing.assert_allclose([found["answers"][a] for a in ANSWERS], expected, rtol=1e-4)
    # Braces in a question or an answer are text.
    odd, replies = "what does {} or {this} mean {", ["{question}", "50 % {"]
    got = dict(vqa.answer(clip, folder / "picture.png", odd, replies))
    rows = np.array([clip.encode_text((one, f"{odd} {one}")).sum(axis=0) for one in replies])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(
        [got[one] for one in replies], scores(image, rows, scale, bias)[0], rtol=1e-4
    )
    table = ask(capsys, folder, "clip", *words, "--templates=a photo of {}").splitlines()
    assert len(table) == 3 and all(line.endswith(" %") for line in table)


def test_a_trained_model_answers_from_its_own(folder, capsys):
    found = json.loads(ask(capsys, folder, "answers", "--question=is it a dog?", "--json"))
    loaded = weights.load(folder / "answers")
    assert loaded.model.answers == ANSWERS
    pixels = loaded.preprocess.normalize(loaded.preprocess(folder / "picture.png"))[None]
    tokens = loaded.tokenizer(["is it a dog?"], 6)
    logits = loaded.model.apply({"params": loaded.params}, pixels, tokens, method="answer")[0]
    expected = 1 / (1 + np.exp(-np.asarray(logits)))
    np.testing.assert_allclose([found["answers"][a] for a in ANSWERS], expected, rtol=1e-5)
    values = list(found["answers"].values())
    assert values == sorted(values, reverse=True)
    words = ["--question=is it a dog?", "--answers=Two,no", "--json"]
    among = json.loads(ask(capsys, folder, "answers", *words))["answers"]
    assert among == pytest.approx({"Two": expected[2], "no": expected[1]}, rel=1e-5)


def test_mistakes_are_one_line(folder, capsys):
    for model, words, message in (
        ("clip", ["--question=is it?"], "was not trained to answer: give answers to choose among"),
        ("clip", ["--question= ", "--answers=a"], "The question is empty"),
        ("clip", ["--question=is it?", "--answers=a,a"], "they must differ"),
        (
            "answers",
            ["--question=is it?", "--answers=a"],
            "does not know the answers a; it knows 3",
        ),
        ("none", ["--question=is it?"], "no such file"),
        ("clip", [], "--question is required"),
        ("clip", ["--question=a", "--answers=a", "--config.seed=1"], "takes no '--config.seed=1'"),
        ("clip", ["--question=a", "--answers=a", "--templates=b"], "must hold {} exactly once"),
    ):
        error = ask(capsys, folder, model, *words, code=2)
        assert message in error and "Traceback" not in error
    (folder / "broken.png").write_bytes(b"no picture")
    for name, message in (
        ("broken.png", "broken.png: it is no picture"),
        ("none.png", "none.png: No such file"),
    ):
        code, out = called(
            capsys,
            *("vqa", f"--model={folder / 'clip'}", f"--image={folder / name}"),
            *("--question=a", "--answers=a"),
        )
        assert code == 2 and message in out.err and len(out.err.splitlines()) == 1
        assert out.err.startswith(f"vlrep: error: --image={folder / name}: ")


def test_the_page_shows_right_and_wrong_answers_of_every_kind(tmp_path):
    kinds = ["count", "count", "<b>", "<b>"]
    details = dict(
        questions=["how many?", "how many <i>?", "is it?", "is it so?"],
        chosen=["2", "3", "yes", "no"],
        blank=["1", "1", "no", "no"],
        scores=np.array([1.0, 0.0, 1.0, 0.3]),
        confidence=np.array([0.9, 0.5, 0.25, 0.75]),
        answers=[["2"] * 10, ["4"] * 10, ["yes"] * 10, ["no"] * 9],
        kinds=kinds,
    )
    metrics = {"accuracy": 0.575, "without_picture": 0.3, "majority": 0.5}
    for kind in set(kinds):
        names = ("accuracy", "without_picture", "majority", "questions")
        metrics |= {f"{kind}/{name}": 0.5 for name in names}
    pictures = np.zeros((4, 8, 8, 3), np.uint8)
    path = tmp_path / "answers.html"
    write_answers(path, title="a run", metrics=metrics, details=details, pictures=pictures)
    page = path.read_text()
    assert "<i>" not in page.replace("<i style", "") and "<b>&lt;b&gt;" not in page
    assert page.count("<img") == 4 and "57.5" in page
    assert "<b>3</b> <small>not 4</small>" in page
    assert "right: 2" in page and "wrong: 1" in page


def test_fusion_layers_go_into_this_librarys_own_layout_alone(folder, capsys, tmp_path):
    for layout in ("huggingface", "openclip"):
        words = [folder / "answers", tmp_path / layout, f"--layout={layout}"]
        code, out = called(capsys, "convert", *words)
        assert code == 2 and f"'{layout}' has no place for fusion layers; 'vlrep' has" in out.err
        assert not (tmp_path / layout).exists()
    code, _ = called(capsys, "convert", folder / "answers", tmp_path / "own", "--layout=vlrep")
    assert code == 0
    one, other = (weights.load(path) for path in (folder / "answers", tmp_path / "own"))
    rows = [loaded.encode_text(["is it a dog?"]) for loaded in (one, other)]
    np.testing.assert_array_equal(*rows)
    assert other.model.answers == ANSWERS
