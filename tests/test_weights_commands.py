"""`vlrep convert`, `export` and `classify` on published models."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pretrained import CLIP, QUICK, pretrained

from vlrep_jax import cli, weights
from vlrep_jax.data.decoding import WHY
from vlrep_jax.data.tokenizers import ClipTokenizer
from vlrep_jax.exported import load_exported
from vlrep_jax.weights import files


def called(capsys, *argv):
    with pytest.raises(SystemExit) as exit:
        cli.main([str(word) for word in argv])
    return exit.value.code or 0, capsys.readouterr()


@pytest.fixture
def clip_files(tmp_path):
    weights.save(tmp_path / "clip", pretrained(CLIP, ClipTokenizer()), "openclip")
    rng = np.random.default_rng(0)
    # Square: of others Hugging Face and OpenCLIP may cut another half pixel off.
    for name in ("one.png", "two.jpg"):
        Image.fromarray(rng.integers(0, 256, (50, 50, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def test_convert_and_classify(clip_files, capsys):
    code, out = called(
        capsys, "convert", clip_files / "clip", clip_files / "hf", "--layout=huggingface"
    )
    assert code == 0 and "hf (huggingface) from" in out.out
    words = ["--images", clip_files / "*.[pj][np]g", "--labels=a cat,a dog, a lamp"]
    answers = []
    for name in ("clip", "hf"):
        code, out = called(capsys, "classify", f"--model={clip_files / name}", *words, "--json")
        assert code == 0 and not out.err
        answers.append([json.loads(line) for line in out.out.splitlines()])
    assert [Path(row["image"]).name for row in answers[0]] == ["one.png", "two.jpg"]
    for one, two in zip(*answers, strict=True):
        assert list(one["scores"]) == ["a cat", "a dog", "a lamp"]
        assert sum(one["scores"].values()) == pytest.approx(1)
        assert one["scores"] == pytest.approx(two["scores"], abs=1e-5)
    (clip_files / "text.jpg").write_text("hello")
    code, out = called(capsys, "classify", f"--model={clip_files / 'hf'}", *words)
    assert out.err == f"{clip_files / 'text.jpg'} is left out: {WHY['format']}\n"
    rows = out.out.splitlines()
    assert len(rows) == 2 and rows[0].startswith("one.png  ") and "%" in rows[0]
    (clip_files / "a\nb\u202e.png").write_bytes((clip_files / "one.png").read_bytes())
    words[1] = clip_files / "a*.png"
    _, out = called(capsys, "classify", f"--model={clip_files / 'hf'}", *words)
    assert out.out.startswith(r"a\nb\u202e.png  ") and len(out.out.splitlines()) == 1
    (clip_files / "a\nb\u202e.png").unlink()


def test_export_and_run(clip_files, capsys):
    out_dir = clip_files / "programs"
    code, out = called(capsys, "export", f"--model={clip_files / 'clip'}", f"--out={out_dir}")
    assert code == 0 and f"Wrote {out_dir}: " in out.out
    towers, one = load_exported(out_dir), weights.load(clip_files / "clip")
    pixels = np.stack([one.preprocess(clip_files / "one.png")] * 3)
    images = [clip_files / "one.png"] * 3
    np.testing.assert_allclose(towers.encode_image(pixels), one.encode_image(images), atol=1e-6)
    tokens = one.tokenizer(["a cat", "a dog"], 77)
    text = one.encode_text(["a cat", "a dog"])
    np.testing.assert_allclose(towers.encode_text(tokens), text, atol=1e-6)


def test_mistakes_on_the_command_line(clip_files, capsys):
    clip = clip_files / "clip"

    def error(*argv):
        code, out = called(capsys, *argv)
        assert code == 2
        return out.err

    assert "--layout is required" in error("convert", clip, clip_files / "x")
    assert "Unknown layout 'hf'" in error("convert", clip, clip_files / "x", "--layout=hf")
    assert "exists already" in error("convert", clip, clip, "--layout=huggingface")
    assert "no such file or directory" in error("convert", "nowhere", "x", "--layout=openai")
    images = ["--images", clip_files / "one.png"]
    assert "matches no file" in error(
        "classify", f"--model={clip}", "--images=nothing*", "--labels=a"
    )
    assert "they must differ" in error("classify", f"--model={clip}", *images, "--labels=a,a")
    assert "must hold {} exactly once" in error(
        "classify", f"--model={clip}", *images, "--labels=a,b", "--templates=a photo"
    )
    (clip_files / "one.png").write_bytes(b"no picture")
    assert "none of the 1 files is a picture" in error(
        "classify", f"--model={clip}", *images, "--labels=a,b"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_conversion_that_is_told_to_stop_leaves_nothing(clip_files, capsys, monkeypatch, number):
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    monkeypatch.setattr(files, "_each", lambda *_: os.kill(os.getpid(), number))
    target = clip_files / "new" / "hf"
    code, out = called(capsys, "convert", clip_files / "clip", target, "--layout=huggingface")
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert code == 128 + number and out.err == f"vlrep: {word}.\n"
    assert list((clip_files / "new").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_killed_conversion_left_is_removed_by_the_next(clip_files, capsys):
    done = subprocess.Popen(["true"])
    done.wait()
    for name in (f".hf.part-{done.pid}", f".hf.part-{os.getppid()}", ".hf.part-x"):
        (clip_files / "new" / name).mkdir(parents=True)
    target = clip_files / "new" / "hf"
    code, _ = called(capsys, "convert", clip_files / "clip", target, "--layout=huggingface")
    names = {path.name for path in (clip_files / "new").iterdir()}
    # One of these processes still runs, and the other is none.
    assert code == 0 and names == {"hf", f".hf.part-{os.getppid()}", ".hf.part-x"}


def test_an_architecture_that_no_file_tells_is_named(tmp_path, capsys, monkeypatch):
    weights.save(tmp_path / "clip.pt", pretrained(QUICK), "openai")
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    words = ["--images", tmp_path / "one.png", "--labels=a,b", f"--model={tmp_path / 'clip.pt'}"]
    # As Python does where no test listens.
    shown = lambda *args, **_: sys.stderr.write(warnings.formatwarning(*args[:4]))  # noqa: E731
    monkeypatch.setattr(warnings, "showwarning", shown)
    code, out = called(capsys, "classify", *words)
    assert code == 0 and out.out.startswith("one.png")
    (line,) = out.err.splitlines()
    assert line.startswith("vlrep: warning: ") and line.endswith("or --preset=ViT-B-32.")
    code, out = called(capsys, "classify", *words, "--preset=ViT-B-32-quickgelu")
    assert code == 2 and "does not hold the model that it describes" in out.err
    code, out = called(
        capsys, "export", words[-1], f"--out={tmp_path / 'x'}", "--preset=ViT-B-32-quickgleu"
    )
    assert code == 2 and "ViT-B-32-quickgelu" in out.err
