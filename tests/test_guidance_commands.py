"""`vlrep generate` and `vlrep edit`: what they write, the same for the same seed, and mistakes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from emoji_data import noise
from PIL import Image
from test_guidance import model
from tiny_models import DRAWS
from tiny_pretrained import pretrained

from vlrep_jax import cli, weights
from vlrep_jax.data.tokenizers import train_bpe


def called(capsys, *argv):
    with pytest.raises(SystemExit) as exit:
        cli.main([str(word) for word in argv])
    return exit.value.code or 0, capsys.readouterr()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """clip: a model in OpenCLIP's layout. picture.png, mask.png: 30x40 pixels."""
    path = tmp_path_factory.mktemp("guided")
    weights.save(path / "clip", model("clip"), "openclip")
    Image.fromarray(noise(40, 30)).save(path / "picture.png")
    mask = np.zeros((40, 30), np.uint8)
    mask[10:20, 5:15] = 255
    Image.fromarray(mask).save(path / "mask.png")
    return path


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_generate_writes_the_same_bytes_for_the_same_seed(files, tmp_path, capsys):
    words = [f"--model={files / 'clip'}", "--text=a heart", "--text=a sun", "--not=a dog;a cat"]
    words += ["--count=2", "--steps=3", "--size=24"]
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        code, out = called(capsys, "generate", *words, f"--out={tmp_path / name}", f"--seed={seed}")
        assert code == 0, out.err
    assert f"Wrote 4 pictures, sheet.png, frames.png and record.json to {tmp_path}" in out.out
    assert "step 3/3" in out.err
    one, same, other = (contents(tmp_path / name) for name in ("one", "same", "other"))
    pictures = [f"{i:04}.png" for i in range(4)]
    assert sorted(one) == sorted([*pictures, "sheet.png", "frames.png", "record.json"])
    assert one == same
    assert all(one[name] != other[name] for name in pictures)
    record = json.loads(one["record.json"])
    assert [row["text"] for row in record["pictures"]] == ["a heart"] * 2 + ["a sun"] * 2
    clip = weights.load(files / "clip")
    cosine = clip.encode_image([tmp_path / "one" / "0003.png"]) @ clip.encode_text(["a sun"]).T
    assert record["pictures"][3]["cosine"] == [pytest.approx(cosine.item(), abs=1e-5)]
    with Image.open(tmp_path / "one" / "0000.png") as picture:
        assert picture.size == (24, 24)
    with Image.open(tmp_path / "one" / "frames.png") as animation:
        assert animation.n_frames == 4  # each step's begin, and the end


def test_a_learned_generator_draws_from_its_directory(tmp_path, capsys):
    section = {"name": "text_to_image", **DRAWS, "text": DRAWS["text"] | {"vocab_size": 300}}
    made = pretrained(section, train_bpe(["a heart", "a sun"], 300))
    made = replace(made, config={"model": section, "image": made.preprocess.section()})
    weights.save(tmp_path / "gan", made, "vlrep")
    words = [f"--model={tmp_path / 'gan'}", "--text=a sun", "--count=1", "--steps=2"]
    out_dir = tmp_path / "out"
    code, out = called(
        capsys, "generate", *words, f"--generator={tmp_path / 'gan'}", f"--out={out_dir}"
    )
    assert code == 0, out.err
    with Image.open(out_dir / "0000.png") as picture:
        assert picture.size == (8, 8)
    code, out = called(
        capsys, "generate", *words, f"--generator={tmp_path / 'gan'}", "--out=x", "--size=9"
    )
    assert code == 2 and "--size=9 is for fourier and laplacian" in out.err
    with pytest.raises(ValueError, match="No other project has a place for a TextToImage"):
        weights.save(tmp_path / "hf", made, "huggingface")


def test_edit_changes_what_the_mask_allows_and_nothing_at_strength_0(files, tmp_path, capsys):
    words = [f"--model={files / 'clip'}", f"--image={files / 'picture.png'}"]
    words += ["--from=a dog", "--to=a wolf", "--steps=3"]
    for name, more in (
        ("none", ["--strength=0"]),
        ("part", [f"--mask={files / 'mask.png'}"]),
        ("same", [f"--mask={files / 'mask.png'}"]),
    ):
        code, out = called(capsys, "edit", *words, *more, f"--out={tmp_path / name}")
        assert code == 0, out.err
    original = np.asarray(Image.open(files / "picture.png"))
    mask = np.asarray(Image.open(files / "mask.png")) > 0
    none, part = (np.asarray(Image.open(tmp_path / n / "edited.png")) for n in ("none", "part"))
    np.testing.assert_array_equal(none, original)
    np.testing.assert_array_equal(part[~mask], original[~mask])
    assert (part[mask] != original[mask]).any()
    assert contents(tmp_path / "part") == contents(tmp_path / "same")
    record = json.loads((tmp_path / "part" / "record.json").read_text())
    assert record["from"] == "a dog" and record["rms_change"] > 0
    with Image.open(tmp_path / "part" / "frames.png") as animation:
        assert animation.n_frames == 4


def test_mistakes_on_the_command_line(files, tmp_path, capsys):
    clip, out_dir = f"--model={files / 'clip'}", tmp_path / "out"
    drawing = [clip, "--text=a heart", f"--out={out_dir}", "--steps=1"]
    picture = f"--image={files / 'picture.png'}"
    texts = ["--from=a dog", "--to=a wolf"]
    editing = [clip, picture, *texts, f"--out={out_dir}", "--steps=1"]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("L", (30, 41)).save(tmp_path / "large.png")
    Image.new("L", (30, 40)).save(tmp_path / "black.png")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for words, message in (
        (["generate", *drawing[1:]], "--model is required"),
        (["generate", clip, f"--out={out_dir}"], "--text is required"),
        (["generate", *drawing, "--text= "], "A text is empty"),
        (["generate", "--model=nowhere", *drawing[1:]], "nowhere: no such file or directory"),
        (["generate", *drawing, "--generator=fuorier"], "did you mean 'fourier'"),
        (["generate", *drawing, f"--generator={files / 'clip'}"], "this is a DualEncoder"),
        (["generate", *drawing, "--count=0"], "--count=0 must be at least 1"),
        (["generate", *drawing, "--steps=0"], "steps=0 must be at least 1"),
        (["generate", *drawing, f"--out={tmp_path / 'there'}"], "exists already"),
        (["generate", *drawing, "--config.seed=1"], "takes no '--config.seed=1'"),
        (["edit", clip, picture, *texts], "--out is required"),
        (["edit", *editing, "--from="], "--from is empty"),
        (["edit", *editing, "--to= "], "A text is empty"),
        (["edit", *editing, "--to=a dog"], "'a dog' and 'a dog' are the same to the model"),
        (["edit", *editing, "--image=nothing.png"], "--image=nothing.png: there is no such file"),
        (["edit", *editing, f"--image={tmp_path / 'broken.png'}"], "broken.png: it is no picture"),
        (["edit", *editing, f"--mask={tmp_path / 'large.png'}"], "30x41 pixels and the picture 30"),
        (["edit", *editing, f"--mask={tmp_path / 'black.png'}"], "is black: nothing may change"),
        (["edit", *editing, "--strength=-1"], "--strength=-1.0 must be a number from 0 to"),
        (["edit", *editing, "--strength=nan"], "--strength=nan must be a number"),
        (["edit", *editing, "--seed=4294967296"], "--seed=4294967296 must be from 0"),
        (["edit", *editing, "--closeness=-1"], "--closeness=-1.0 must be a number from 0"),
    ):
        code, out = called(capsys, *words)
        assert code == 2 and message in out.err, (words, out.err)
        assert "cannot be written" not in out.err
        assert out.err.count("\n") <= 8  # the usage of a missing flag, never a traceback
    assert not out_dir.exists() and not list(tmp_path.glob(".*"))
