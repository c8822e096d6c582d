"""What the README says runs: its Python blocks, and the commands and files it names."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tiny_pretrained import CLIP, pretrained

from vlrep_jax import cli, weights
from vlrep_jax.data.tokenizers import ClipTokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


LOADING, BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_a_published_model_is_used_in_a_few_lines(tmp_path, monkeypatch, capsys):
    """With a small model in the place of the one that it names."""
    monkeypatch.chdir(tmp_path)
    weights.save("clip-vit-base-patch32", pretrained(CLIP, ClipTokenizer()), "huggingface")
    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (40, 50), "white").save(name)
    names = {}
    exec(LOADING, names)
    assert len(names["image"]) == len(names["text"]) == 2
    assert capsys.readouterr().out.startswith("[[")


def test_the_python_example_runs():
    code, names = BLOCKS, {}
    exec(code, names)
    # Eight pairs of one picture and one text: every logit is the same.
    np.testing.assert_allclose(names["value"], np.log(8), rtol=1e-5)
    assert names["values"].shape == (jax.local_device_count(),)
    np.testing.assert_allclose(names["values"], names["value"], rtol=1e-6)
    assert names["gradient"].shape == names["image"].shape


def test_every_file_that_is_named_exists():
    for name in re.findall(r"`((?:configs|docs|vlrep_jax|tests)/[\w/.]*)`", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\((docs/[\w.]+)\)", README):
        assert (ROOT / name).exists(), name


def test_the_commands_are_understood():
    blocks = re.findall(r"```\n(vlrep .*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    for line in "".join(blocks).splitlines():
        words = shlex.split(line, comments=True)
        args, overrides = cli.parse(words[1:])
        if args.command in ("train", "plan"):
            cli.load_config(str(ROOT / args.config), overrides)


def test_the_commands_of_the_other_pages_are_understood():
    for page in (ROOT / "docs").glob("*.md"):
        for block in re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("vlrep train"):
                    args, overrides = cli.parse(shlex.split(line)[1:])
                    cli.load_config(str(ROOT / args.config), overrides)


def test_every_recipe_is_in_the_table():
    for path in (ROOT / "configs").glob("*.py"):
        assert f"`configs/{path.name}`" in README
