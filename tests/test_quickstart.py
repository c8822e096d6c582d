"""Twenty steps of the quick start on its real data, as a user's own processes run it."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from emoji_data import emoji_dir

from vlrep_jax import cli, metrics, run
from vlrep_jax.data.sources import EmojiCaptions, captions

RECIPE = Path(__file__).parent.parent / "configs" / "quickstart.py"
BATCH = 64  # half of the recipe's, for time


def vlrep(folder, *words):
    """Runs the command as installed: one device, optimized programs. Returns what it printed."""
    hidden = ("XLA_FLAGS", "JAX_PLATFORMS")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    paths = [str(RECIPE.parent.parent), environment.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", "from vlrep_jax.cli import main; main()", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(folder that holds `data`, work directory, what training printed)."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "data").symlink_to(emoji_dir())
    words = [f"--config={RECIPE}", "--workdir=run", "--config.steps=20"]
    printed = vlrep(folder, "train", *words, f"--config.batch_size={BATCH}")
    return folder, folder / "run", printed


@pytest.fixture
def workdir(trained, monkeypatch):
    """The work directory, seen from where its config's relative data directory is."""
    monkeypatch.chdir(trained[0])
    return trained[1]


@pytest.fixture(scope="module")
def loaded(trained):
    """(experiment, encoder) in this process, on its eight devices."""
    experiment, encoder, step = run.load(trained[1])
    assert step == 20
    return experiment, encoder


def last_evaluation(workdir):
    return next(
        row for row in reversed(metrics.read(workdir)) if "unseen/text_to_image_recall@10" in row
    )


def test_the_work_directory_holds_what_the_documentation_says(trained):
    _, workdir, printed = trained
    for name in ("config.json", "metrics.jsonl", "tokenizer.json", "report.html"):
        assert (workdir / name).stat().st_size > 100, name
    assert any((workdir / "tb").glob("events.out.tfevents.*"))
    assert {path.name for path in (workdir / "checkpoints").iterdir()} >= {"20"}
    assert json.loads((workdir / "config.json").read_text())["steps"] == 20
    assert "step 20/20" in printed and "images/s" in printed and "report.html" in printed
    assert not list(workdir.glob("*.part"))


def test_twenty_steps_lower_the_loss_below_chance(trained):
    rows = [row for row in metrics.read(trained[1]) if "train/loss" in row]
    assert rows[-1]["step"] == 20 and rows[-1]["train/loss"] < np.log(BATCH)


def test_metrics_have_their_documented_names(trained):
    rows = metrics.read(trained[1])
    assert all(next(iter(row)) == "step" for row in rows)
    first, *_, last = rows
    assert (first["step"], last["step"]) == (0, 20)  # chance, then what was learnt
    training = next(row for row in rows if "train/loss" in row)
    assert training.keys() >= {
        "train/loss",
        "train/learning_rate",
        "train/images_per_second",
        "train/data_wait_fraction",
        "train/logit_scale",
        "train/gradient_norm",
        "train/image_to_text_accuracy",
        "data/bad",
        "data/truncated",
    }
    assert training["data/bad"] == 0 and training["data/truncated"] > 0  # long names are counted
    for name in ("unseen/image_to_text_recall@", "unseen/text_to_image_recall@"):
        at = [last[f"{name}{k}"] for k in (1, 5, 10)]
        assert at == sorted(at) and all(0 <= value <= 1 for value in at)
    assert 0 < last["zero_shot/top1"] <= 1
    # 10 of 352 pictures; a random encoder finds 0.03.
    assert first["unseen/text_to_image_recall@10"] < 0.1


class Page(HTMLParser):
    """The tags of a page, and every address that it names."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        named = ("src", "href", "data", "srcset", "poster")
        self.addresses += [value for key, value in attrs if key in named]


def test_the_report_opens_and_needs_nothing_else(trained):
    page, text = Page(), (trained[1] / "report.html").read_text(encoding="utf-8")
    page.feed(text)
    page.close()
    assert {"html", "title", "img", "table"} <= page.tags and "link" not in page.tags
    assert page.addresses and all(a.startswith(("data:", "#")) for a in page.addresses)
    assert "url(http" not in text and "@import" not in text


def test_evaluating_again_gives_the_same_metrics_exactly(trained):
    folder, workdir, _ = trained
    printed = vlrep(folder, "eval", "--workdir=run")
    found = json.loads((workdir / "eval-20.json").read_text())
    assert found == last_evaluation(workdir)
    assert "unseen/image_to_text_recall@10" in printed and printed.startswith("step 20")


def test_an_evaluation_can_be_of_other_data(workdir, capsys):
    words = [
        f"--config.evals.{name}.source.split=unseen_motifs" for name in ("unseen", "zero_shot")
    ]
    with pytest.raises(SystemExit) as exit:
        cli.main(["eval", f"--workdir={workdir}", "--step=7"])
    assert exit.value.code == 2
    assert "No checkpoint of step 7" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        cli.main(["eval", f"--workdir={workdir}", *words])
    assert not exit.value.code
    found = json.loads((workdir / "eval-20.json").read_text())
    same = {k: v for k, v in found.items() if k.startswith("unseen/")}
    assert same == {k.replace("_motifs", ""): v for k, v in found.items() if "unseen_motifs/" in k}


def embedded(workdir, out, *words):
    with pytest.raises(SystemExit) as exit:
        cli.main(["embed", f"--workdir={workdir}", f"--out={out}", *words])
    assert not exit.value.code
    with np.load(out) as found:
        return dict(found)


def test_embedding_pictures_gives_what_evaluation_uses(workdir, loaded, tmp_path, capsys):
    experiment, encoder = loaded
    # The run had one device; its checkpoint is laid out over eight here.
    assert jax.tree.leaves(encoder.params)[0].sharding.device_set == set(jax.devices())
    samples = EmojiCaptions(emoji_dir(), "unseen").__getitems__(range(20))
    for number, sample in enumerate(samples):
        (tmp_path / f"{number:02}.png").write_bytes(sample.image)
    (tmp_path / "05b.png").write_bytes(b"no picture")
    found = embedded(workdir, tmp_path / "o.npz", f"--images={tmp_path / '*.png'}")
    assert "Left out 1 that cannot be read" in capsys.readouterr().out
    assert [Path(path).name for path in found["paths"]] == [f"{n:02}.png" for n in range(20)]
    used = encoder.images(experiment.evaluations().data["unseen"].image_batches())[:20]
    assert_same_directions(found["embeddings"], used)


def test_embedding_texts_gives_what_evaluation_uses(workdir, loaded, tmp_path):
    texts, _ = captions(EmojiCaptions(emoji_dir(), "unseen"))
    (tmp_path / "texts.txt").write_text("\n".join(texts[:300]) + "\n", encoding="utf-8")
    found = embedded(workdir, tmp_path / "o.npz", f"--texts={tmp_path / 'texts.txt'}")
    assert found["texts"].tolist() == texts[:300]
    assert_same_directions(found["embeddings"], loaded[1].texts(texts)[:300])


def assert_same_directions(found, used):
    assert found.dtype == np.float32 and found.shape == (len(used), 128)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((found * used).sum(axis=1), 1, atol=1e-5)
    assert len(np.unique(found.round(4), axis=0)) > len(found) // 2  # not one for all


def test_no_picture_that_can_be_read_is_an_error(workdir, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as exit:
        cli.main(
            [
                "embed",
                f"--workdir={workdir}",
                f"--out={tmp_path / 'o.npz'}",
                f"--images={tmp_path}/*",
            ]
        )
    assert exit.value.code == 2
    assert "None of the 1 files is a picture" in capsys.readouterr().err
    assert not (tmp_path / "o.npz").exists()
