"""The command line as a newcomer meets it: helps, one-line errors, and Ctrl-C."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_recipe import Squares, config

from vlrep_jax import cli, metrics, run, workdirs
from vlrep_jax.build import plain
from vlrep_jax.data.sources import SOURCES

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
TINY = str(HERE / "tiny_recipe.py")
MAIN = [sys.executable, "-c", "from vlrep_jax.cli import main; main()"]


@pytest.fixture(autouse=True)
def squares(monkeypatch):
    monkeypatch.setitem(SOURCES, "squares", Squares)  # taken out again, as the recipe does not


def called(*argv):
    """Exit code of a command that runs in this process."""
    with pytest.raises(SystemExit) as exit:
        cli.main([str(word) for word in argv])
    return exit.value.code or 0


@pytest.fixture
def fails(capsys):
    """(*argv) -> the one line on stderr of a command that ends with code 2."""

    def run(*argv):
        assert called(*argv) == 2
        out = capsys.readouterr()
        (line,) = out.err.splitlines()
        assert line.startswith("vlrep: error: ") and "Traceback" not in line
        return line.removeprefix("vlrep: error: ")

    return run


def train(workdir, *words, recipe=TINY):
    return ("train", f"--config={recipe}", f"--workdir={workdir}", *words)


# Helps and flags.


def test_the_help_names_every_command(capsys):
    assert called("--help") == 0
    text = capsys.readouterr().out
    for command in ("train", "eval", "embed"):
        assert command in text
        assert called(command, "--help") == 0
        own = capsys.readouterr().out
        assert own.startswith(
            f"usage: vlrep {command} --workdir" if command != "train" else "usage:"
        )
        assert "--workdir" in own and len(max(own.splitlines(), key=len)) <= 100
    assert called("--version") == 0


@pytest.mark.parametrize("command", ["train", "eval"])
def test_helps_say_how_to_change_a_value(command, capsys):
    called(command, "--help")
    assert "--config.KEY=VALUE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ["trian", "train", "eval", "embed"]),
        ([], ["COMMAND"]),
        (["train", "--workdir=w"], ["--config"]),
        (["train", "--config=c", "--wrokdir=w", "--workdir=w"], ["--wrokdir", "'--workdir'"]),
        (["eval", "--workdir=w", "--step=last"], ["--step", "last"]),
        (["embed", "--workdir=w", "--out=o.npz"], ["--images", "--texts"]),
        (["embed", "--workdir=w", "--out=o", "--images=a", "--texts=b"], ["not allowed with"]),
    ],
)
def test_a_wrong_flag_is_shown_with_the_usage(argv, words, capsys):
    assert called(*argv) == 2
    usage, *_, last = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: vlrep") and "error: " in last
    assert all(word in last for word in words), last


# Recipes and their keys.


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chunk": 0}, "config.evals.own: chunk=0 must be a whole number from 1 on."),
        ({"ks": 5}, "config.evals.own: ks=5 must be a list of whole numbers"),
        ({"ks": [0]}, "config.evals.own: ks=[0] must be"),
        ({"kss": [1]}, "evaluation 'retrieval' has no option 'kss': did you mean 'ks'"),
        ({"name": "zero_shot"}, "config.evals.own: missing a required argument: 'sets'."),
    ],
)
def test_a_wrong_option_of_an_evaluation_is_told_before_training(changed, message, tmp_path):
    own = {"name": "retrieval", "source": {"name": "squares", "count": 16}} | changed
    with pytest.raises(ValueError) as caught:
        run.train(config(evals={"own": own}), tmp_path / "w")
    assert message in str(caught.value)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.stpes=3", "config has no key 'stpes'; did you mean 'steps'"),
        ("--config.schedule.paek=1", "config.schedule has no key 'paek'; did you mean 'peak'?"),
        ("--config.steps.more=1", "config.steps is a value, not a section"),
        ("--config.steps", "--config.steps has no value; write --config.steps=VALUE"),
        ("--config.steps=abc", "abc"),
        ("--config.loss.name=sotfmax", "Unknown loss 'sotfmax': did you mean 'softmax'"),
        ("--config.model.image.name=vti", "Unknown image tower 'vti': did you mean 'vit'?"),
        ("--config.data.caption.name=randm", "Unknown caption 'randm': did you mean 'random'?"),
        ("--config.tokenizer.name=pbe", "Unknown tokenizer 'pbe': did you mean 'bpe'?"),
        ("--config.data.source.name=square", "did you mean 'squares'?"),
        ("--config.batch_size=12", "batch_size=12 must be a multiple of 8 devices; the nearest is"),
        ("--config.chunks=3", "a multiple of 8 devices times 3 chunks; the nearest is 24"),
        ("--config.chunks=0", "config.chunks=0 must be at least 1"),
        ("--config.model.text.vocab_size=9", "300 ids, but the model's vocab_size is 9"),
        ("--config.parallel.data=3", "parallel.data=3, parallel.fsdp=1 do not fit 8 devices"),
    ],
)
def test_a_wrong_value_is_one_line(word, message, fails, tmp_path):
    assert message in fails(*train(tmp_path / "w", word))
    assert not (tmp_path / "w").exists()  # nothing was begun


def test_a_value_can_be_changed_whatever_its_type():
    words = ["--config.steps=9", "--config.schedule.peak=1e-3", "--config.data.cache=True"]
    words += ["--config.freeze=('image/.*',)", "--config.model.image.pool=mean"]
    with pytest.raises(ValueError, match="'pool'"):
        cli.load_config(TINY, words)  # the recipe does not set it
    made = cli.load_config(TINY, words[:-1])
    assert (made.steps, made.schedule.peak, made.data.cache) == (9, 1e-3, True)
    assert tuple(made.freeze) == ("image/.*",)
    assert made.is_locked


def test_a_recipe_that_is_not_there_or_is_none(fails, tmp_path):
    assert "there is no file 'nope.py'" in fails(*train(tmp_path, recipe="nope.py"))
    other = tmp_path / "other.py"
    other.write_text("x = 1\n")
    assert "has no function get_config" in fails(*train(tmp_path, recipe=other))
    for text, message in [
        ("get_config = lambda: 1 / 0", "ZeroDivisionError: division by zero"),
        ("def get_config(:", "SyntaxError: invalid syntax"),
        ("def get_config():\n    return {}", "get_config returned dict, not a ConfigDict"),
    ]:
        other.write_text(text)
        assert message in fails(*train(tmp_path / "w", recipe=other))
    large = f"{CONFIGS / 'clip_vit_l14.py'}:448"
    assert "image size of 224 or 336, not '448'" in fails(*train(tmp_path, recipe=large))
    small = f"{CONFIGS / 'clip_vit_b32.py'}:224"
    assert "the recipe takes no argument" in fails(*train(tmp_path, recipe=small))


def test_a_data_directory_that_is_not_there(fails, tmp_path):
    recipe = CONFIGS / "clip_vit_b32.py"
    assert "source.path=DIR" in fails(*train(tmp_path / "w", recipe=recipe))
    word = f"--config.data.source.path={tmp_path / 'none'}"
    assert f"{tmp_path / 'none'} is not a directory" in fails(
        *train(tmp_path / "w", word, recipe=recipe)
    )
    word = f"--config.data.source.path={tmp_path}"
    assert "holds 0 prepared TFDS data sets" in fails(*train(tmp_path / "w", word, recipe=recipe))


# Work directories.


def test_a_directory_of_another_run_names_what_differs(fails, tmp_path):
    # Before the first checkpoint there is nothing that another config could be mixed with.
    workdirs.write_json(tmp_path / "config.json", plain(config(seed=3, steps=9)))
    assert not workdirs.check_same_run(tmp_path, config())
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "tokenizer.json").write_text("{}")
    message = fails(*train(tmp_path))
    assert "holds a run of another config: seed was 3, now 0; steps was 9, now 6." in message
    # What does not change the result may differ.
    same = plain(config(log_every=7, **{"parallel.wiring": "pmap"}))
    assert workdirs.check_same_run(tmp_path, config(seed=3, steps=9))
    workdirs.write_json(tmp_path / "config.json", same)
    assert workdirs.check_same_run(tmp_path, config())


def test_a_directory_that_is_none(fails, tmp_path):
    (tmp_path / "w" / "checkpoints" / "5").mkdir(parents=True)
    assert "checkpoints without config.json" in fails(*train(tmp_path / "w"))
    (tmp_path / "w" / "config.json").write_text('{"seed": ')
    assert "checkpoints without tokenizer.json" in fails(*train(tmp_path / "w"))
    (tmp_path / "w" / "tokenizer.json").write_text("{}")
    for text in ('{"seed": ', "[]", "null"):
        (tmp_path / "w" / "config.json").write_text(text)
        assert "holds no config" in fails(*train(tmp_path / "w"))
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in fails(*train(tmp_path / "file"))


def test_evaluating_or_embedding_without_a_run(fails, tmp_path):
    (tmp_path / "texts.txt").write_text("a cat\n")
    out = f"--out={tmp_path / 'o.npz'}"
    for argv in (("eval",), ("embed", f"--texts={tmp_path / 'texts.txt'}", out)):
        message = fails(*argv, f"--workdir={tmp_path / 'none'}")
        assert "is not the work directory of a run" in message and "vlrep train" in message
    workdirs.write_json(tmp_path / "config.json", plain(config()))
    assert "has no checkpoint yet" in fails("eval", f"--workdir={tmp_path}")


def test_wrong_inputs_of_embed_show_before_the_model_is_loaded(fails, tmp_path):
    good, texts = tmp_path / "o.npz", tmp_path / "texts.txt"
    texts.write_bytes(b"\n  \n")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))

    def embed(out=good, **inputs):
        words = [f"--{name}={value}" for name, value in inputs.items()]
        return fails("embed", f"--workdir={tmp_path}", f"--out={out}", *words)

    assert "must end in .npz" in embed(out="o.npy", texts=texts)
    assert "there is no directory" in embed(out=tmp_path / "none" / "o.npz", texts=texts)
    assert "matches no file" in embed(images=tmp_path / "*.png")
    assert "there is no such file" in embed(texts=tmp_path / "none.txt")
    assert "holds no text" in embed(texts=texts)
    assert "is not UTF-8" in embed(texts=tmp_path / "latin.txt")
    words = ("embed", f"--workdir={tmp_path}", f"--texts={texts}", f"--out={good}")
    assert "takes no '--config.seed=1'" in fails(*words, "--config.seed=1")


def test_a_diverging_run_is_one_line(fails, tmp_path, monkeypatch):
    from vlrep_jax import run

    def diverge(*_, **__):
        raise FloatingPointError("loss is nan at step 3")

    monkeypatch.setattr(run, "train", diverge)
    assert fails(*train(tmp_path)) == "loss is nan at step 3"
    with pytest.raises(FloatingPointError):
        cli.main([*train(tmp_path), "--traceback"])


@pytest.mark.parametrize("count", [10, 10**6], ids=["at the end", "while it prints"])
def test_whoever_stops_reading_is_no_mistake(count, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(cli, "_convert", lambda *_: print("x" * count) or 0)
    with open(write, "w", encoding="ascii") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as ended:
            cli.main(["convert", "a", "b", "--layout=c"])
    assert ended.value.code == 141 and not capfd.readouterr().err


def test_names_that_the_terminal_cannot_show_are_escaped(monkeypatch):
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding="ascii"))
    monkeypatch.setattr(cli, "_convert", lambda *_: print("naïve") or 0)
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", "a", "b", "--layout=c"])
    assert not ended.value.code and held.getvalue() == b"na\\xefve\n"


# Ctrl-C.


def losses(workdir):
    return [(r["step"], r["train/loss"]) for r in metrics.read(workdir) if "train/loss" in r]


def test_ctrl_c_saves_says_how_to_continue_and_loses_nothing(tmp_path, capsys):
    argv = train(tmp_path / "stopped", "--config.steps=100")
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "SQUARES_DELAY_S": "0.03", "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen([*MAIN, *argv], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        rows, deadline = tmp_path / "stopped" / "metrics.jsonl", time.monotonic() + 120
        while not rows.exists() or len(rows.read_text().splitlines()) < 8:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 42, errors
    last = errors.splitlines()[-1]
    assert last.startswith("Stopped; what was trained is saved. To continue: vlrep train --config=")
    assert "Traceback" not in errors
    steps = [step for step, _ in losses(tmp_path / "stopped")]
    assert steps == list(range(1, len(steps) + 1)) and 7 <= len(steps) < 100
    # The very command that was printed.
    assert called(*shlex.split(last.split("vlrep ")[1])) == 0
    assert f"Continuing from step {len(steps)} of 100." in capsys.readouterr().err
    assert called(*train(tmp_path / "whole", "--config.steps=100")) == 0
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")  # to the bit
    assert len(losses(tmp_path / "whole")) == 100
    # Finished already: nothing happens to it.
    before = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert called(*train(tmp_path / "whole", "--config.steps=100")) == 0
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["steps"] == 100
