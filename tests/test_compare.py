"""`vlrep compare`: two models on a folder and a table, what it writes, and wrong arguments."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from emoji_data import encoded
from PIL import Image
from test_weights_commands import called
from tiny_pretrained import CLIP, pretrained

from vlrep_jax import suite, weights
from vlrep_jax.data.labelled import open_labelled
from vlrep_jax.data.tokenizers import ClipTokenizer
from vlrep_jax.evals.retrieval import retrieval
from vlrep_jax.evals.zero_shot import class_embeddings, zero_shot
from vlrep_jax.suite.comparing import choose, short_names

COLOURS = {"blue": (0, 0, 255), "green": (0, 200, 0), "red": (255, 0, 0)}


def pictures(folder, count, seed, shade=1.0):
    """Noisy pictures of each colour, by which even random parameters tell them apart."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = shade * np.array(colour) + rng.normal(0, 60, (32, 32, 3))
            data = encoded(image.clip(0, 255).astype(np.uint8))
            (folder / name / f"{i}.png").write_bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("compare")
    one = pretrained(CLIP, ClipTokenizer())
    one = replace(one, config={**one.config, "image": one.preprocess.section()})
    weights.save(path / "one", one, "openclip")
    other = replace(one, params=jax.tree.map(lambda leaf: 1.1 * leaf, one.params))
    weights.save(path / "two/model", other, "vlrep")
    weights.save(path / "mute", replace(one, tokenizer=None), "vlrep")
    for i, (name, count) in enumerate((("train", 5), ("val", 2), ("test", 4))):
        pictures(path / "set" / name, count, seed=i)
    pictures(path / "dim/test", 4, seed=9, shade=0.3)
    (path / "set/test/red/9.png").write_bytes(b"no picture")
    rows = [f"set/test/{name}/0.png,{text} {name}" for name in COLOURS for text in ("a", "the")]
    rows.insert(0, "set/test/red/9.png,cannot be read")
    (path / "captions.csv").write_text("\n".join(["path,caption", *rows]))
    (path / "templates.txt").write_text("a {} thing\n{}\n")
    (path / "names.json").write_text(json.dumps({**{name: name for name in COLOURS}, "x": "y"}))
    return path


def compare(capsys, folder, *words, models=("one", "two/model"), code=0):
    paths = [folder / model for model in models]
    found, out = called(capsys, "compare", *paths, *words)
    assert found == code, out.err
    return out


@pytest.fixture(scope="module")
def written(folder):
    """What a run on the folder writes."""
    from vlrep_jax import cli

    words = ["compare", folder / "one", folder / "two/model", f"--data={folder / 'set'}"]
    words += [f"--shifted={folder / 'dim'}", f"--templates={folder / 'templates.txt'}"]
    words += [f"--classes={folder / 'names.json'}", "--shots=1,2,8", "--seeds=2", "--knn_k=3"]
    with pytest.raises(SystemExit) as exit:
        cli.main([*map(str, words), f"--out={folder / 'out'}"])
    assert not exit.value.code
    return json.loads((folder / "out/compare.json").read_text())


def test_every_suite_that_the_data_allow_is_run_on_every_model(written):
    assert [model["name"] for model in written["models"]] == ["one", "model"]
    assert list(written["left_out"]) == ["retrieval"]
    assert written["pictures"] == {"test": 13, "train": 15, "val": 6, "shifted": 12}
    assert written["commonest"] == {"test": pytest.approx(5 / 13), "shifted": pytest.approx(1 / 3)}
    for model in written["models"]:
        assert list(model["metrics"]) == [name for name in suite.SUITES if name != "retrieval"]
        assert model["unreadable"] == {"test": 1, "train": 0, "val": 0, "shifted": 0}
        metrics, details = model["metrics"], model["details"]
        # Colours are told apart, and the shift costs something or nothing; the sums must fit.
        assert metrics["linear_probe"]["top1"] > 0.9 and metrics["knn"]["top1"] > 0.9
        for name in ("zero_shot", "linear_probe", "knn"):
            found = metrics[name]
            assert found["gap"] == pytest.approx(found["top1"] - found["shifted_top1"])
        assert metrics["few_shot"].keys() == {"1_shot", "1_shot_std", "2_shot", "2_shot_std"}
        assert details["few_shot"]["left_out"] == [8] and details["knn"]["k"] == 3
        assert details["linear_probe"]["validation"] == "val"
        assert 0 <= metrics["calibration"]["ece"] <= 1
        assert sum(details["calibration"]["count"]) == 12


def test_zero_shot_is_that_of_the_functions(written, folder):
    loaded = weights.load(folder / "one")
    paths = [folder / f"set/test/{name}/{i}.png" for name in COLOURS for i in range(4)]
    text = class_embeddings(loaded.encode_text, list(COLOURS), ["a {} thing", "{}"])
    labels = np.repeat(np.arange(3), 4)
    expected = zero_shot(loaded.encode_image(paths), labels, text)
    found = written["models"][0]["metrics"]["zero_shot"]
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_table_and_the_plot(written, folder):
    table = (folder / "out/compare.md").read_text().splitlines()
    head = next(line for line in table if line.startswith("| |"))
    assert head == "| | one | model |"
    found = written["models"]
    values = " | ".join(f"{100 * one['metrics']['knn']['top1']:.1f}" for one in found)
    assert f"| k-NN, top-1 | {values} |" in table
    assert any(line.startswith("| few-shot, 2 a class, top-1 |") and "±" in line for line in table)
    with Image.open(folder / "out/compare.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert min(picture.size) > 500 and len(np.unique(pixels, axis=0)) > 20
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "compare.json",
        "compare.md",
        "compare.png",
    ]


def test_retrieval_of_several_captions_leaves_out_what_cannot_be_read(folder, capsys):
    words = [f"--data={folder / 'captions.csv'}", f"--out={folder / 'found'}"]
    out = compare(capsys, folder, *words, models=("one",))
    assert "left out 1 of test that cannot be read" in out.err and "9.png (format)" in out.err
    assert "retrieval, image to text R@1" in out.out
    held = json.loads((folder / "found/compare.json").read_text())
    assert list(held["left_out"]) == [name for name in suite.SUITES if name != "retrieval"]
    (model,) = held["models"]
    loaded = weights.load(folder / "one")
    image = loaded.encode_image([folder / f"set/test/{name}/0.png" for name in COLOURS])
    texts = loaded.encode_text([f"{word} {name}" for name in COLOURS for word in ("a", "the")])
    expected = retrieval(image, texts, [0, 0, 1, 1, 2, 2])
    assert model["metrics"]["retrieval"] == pytest.approx(expected)


def test_a_model_without_a_tokenizer_is_probed_all_the_same(folder, capsys):
    words = [f"--data={folder / 'set'}", f"--out={folder / 'mute-out'}"]
    out = compare(capsys, folder, *words, models=("one", "mute"), code=2)
    assert "mute holds no tokenizer" in out.err
    out = compare(capsys, folder, *words, "--suite=knn", models=("mute",))
    assert "k-NN, mean per class" in out.out and "zero-shot" not in out.out


def test_mistakes_are_one_line(folder, capsys):
    pictures(folder / "other/test", 1, seed=3)
    (folder / "other/test/red").rename(folder / "other/test/pink")
    (folder / "bad/test/a").mkdir(parents=True)
    (folder / "bad/test/a/1.png").write_bytes(b"")
    (folder / "two.txt").write_text("a\nb\n")
    (folder / "plain.txt").write_text("no place\n")
    data, out = f"--data={folder / 'set'}", f"--out={folder / 'mistakes'}"
    for words, message in (
        ([data, out, "--suite=knn,zero_shots"], "no suite 'zero_shots'; did you mean 'zero_shot'"),
        ([data, out, "--suite=retrieval"], "retrieval cannot be run"),
        ([data, out, f"--shifted={folder / 'other'}"], "has 1, such as 'red'"),
        ([data, out, f"--classes={folder / 'two.txt'}"], "names 2 classes, but the data set has 3"),
        ([data, out, f"--classes={folder / 'none.txt'}"], "none.txt cannot be read"),
        ([data, out, f"--templates={folder / 'plain.txt'}"], "must hold {} exactly once"),
        ([data, out, "--shots=1,x"], "--shots=1,x must be whole numbers"),
        ([data, out, "--seeds=0"], "--seeds=0 must be at least 1"),
        ([data, out, "--config.seed=1"], "takes no '--config.seed=1'"),
        ([data, out, "--label=kind"], "a folder of classes: it has no column kind"),
        ([data, out, "--suite=few_shot", "--shots=9"], "a class has 5 training pictures"),
        ([data, f"--out={folder / 'two.txt'}"], "two.txt is a file; name a directory"),
        ([f"--data={folder / 'bad'}", out, "--suite=zero_shot"], "none of the 1 pictures"),
        ([f"--data={folder / 'nothing'}", out], "no such directory or file"),
        ([out], "--data is required"),
        ([data], "--out is required"),
    ):
        error = compare(capsys, folder, *words, models=("one",), code=2).err.splitlines()
        assert message in error[-1] and "Traceback" not in "".join(error), (words, error)
    for models, message in ((("one", "no"), "no: no such file"), (("one", "one"), "given twice")):
        assert message in compare(capsys, folder, data, out, models=models, code=2).err
    assert not (folder / "mistakes").exists()


def test_names_are_the_shortest_ends_that_differ():
    assert short_names(["runs/a", "x/b"]) == ["a", "b"]
    assert short_names(["runs/a/model", "runs/b/model"]) == ["a/model", "b/model"]


def test_suites_that_data_do_not_allow_say_why(folder):
    wanted, left_out = choose(open_labelled(folder / "dim"), None)
    assert wanted == ["zero_shot", "calibration"]
    assert "no labelled train split" in left_out["knn"] and "no captions" in left_out["retrieval"]
    # One training picture a class: none to hold out, unless a val split has labels.
    data = open_labelled(folder / "set")
    lone = data.splits["train"]._replace(labels=np.array([0, -1, -1, -1, -1, 1] + [-1] * 9))
    unknown = data.splits["val"]._replace(labels=np.full(6, -1))
    for val, without in ((unknown, {"linear_probe", "few_shot"}), (data.splits["val"], set())):
        splits = data.splits | {"train": lone, "val": val}
        assert choose(data._replace(splits=splits), None)[1].keys() == {"retrieval"} | without
    nothing = data.splits["test"]._replace(labels=np.full(13, -1))
    with pytest.raises(ValueError, match=r"knn cannot be run: .*set has no labels"):
        choose(data._replace(splits=data.splits | {"test": nothing}), ["knn"])


def test_a_val_split_without_labels_is_no_reason_not_to_probe(folder):
    data = open_labelled(folder / "set")
    val = data.splits["val"]._replace(labels=np.full(6, -1))
    data = data._replace(splits=data.splits | {"val": val})
    found = suite.compare([folder / "one"], data, suites=["linear_probe"], say=lambda _: None)
    assert found.models[0]["details"]["linear_probe"]["validation"] == "20% of train"
