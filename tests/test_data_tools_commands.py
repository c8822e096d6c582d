"""`vlrep data check`, `inspect` and `bench` on the command line: errors, Ctrl-C, figures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_files import write_csv, write_folder, write_pictures
from tars import shards
from tiny_recipe import Squares

from vlrep_jax import cli
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.data_tools import bench

ROOT = Path(__file__).resolve().parent.parent
TINY = str(ROOT / "tests" / "tiny_recipe.py")
UNFILLED = f"--config={ROOT / 'configs' / 'clip_vit_b32.py'}"  # names no data


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
    """(*argv) -> the error of a command that ends with code 2, which is one line."""

    def run(*argv):
        assert called(*argv) == 2
        *progress, line = capsys.readouterr().err.splitlines()
        assert line.startswith("vlrep: error: ")
        assert all(words.startswith("compiling for") for words in progress)
        return line.removeprefix("vlrep: error: ")

    return run


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    return write_folder(tmp_path / "photos")


# Errors.


def test_a_wrong_place_is_one_line(fails, folder, tmp_path):
    def check(*words):
        return fails("data", "check", *words, f"--out={tmp_path / 'r'}")

    assert "takes either PATH or --config=FILE" in check()
    assert "takes either PATH or --config=FILE" in check(folder, f"--config={TINY}")
    assert "there is no such file or directory" in check(tmp_path / "none")
    assert f"There is no file {tmp_path / 'none.csv'}" in check(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    assert "holds no TFDS data set, tar shards, Parquet" in check(tmp_path / "empty")
    (tmp_path / "mute").mkdir()
    write_pictures(tmp_path / "mute")
    assert "pictures with texts beside them" in check(tmp_path / "mute")
    header = tmp_path / "header.csv"
    header.write_text("image,caption\n")
    assert f"{header} has no samples" in check(header)
    table = write_csv(tmp_path / "t.csv", [{"image": "a.png", "title": "text"}])
    assert "'caption'" in check(table) and "title" in check(table)
    assert "write --option=captions=VALUE" in check(table, "--option=captions")
    assert "did you mean 'captions'" in check(table, "--option=captoins=title")
    assert "--config.seed=1 goes with --config=FILE" in check(folder, "--config.seed=1")
    assert "change --config.data.source.KEY" in check(f"--config={TINY}", "--option=a=b")
    assert "source.path=DIR" in check(UNFILLED)
    assert "--workers=-1 and --limit=0 must be" in check(folder, "--workers=-1")
    assert not (tmp_path / "r").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".r-")]


def test_what_is_there_is_not_written_over(fails, folder, tmp_path):
    assert "needs --out, the directory to write" in fails("data", "check", folder)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "mine").write_text("kept")
    out = f"--out={tmp_path / 'r'}"
    assert "is there already; name another directory" in fails("data", "check", folder, out)
    out = f"--out={tmp_path / 'r' / 'mine'}"
    assert "is there already; name another directory" in fails("data", "check", folder, out)
    assert (tmp_path / "r" / "mine").read_text() == "kept"


def test_a_wrong_inspection_is_one_line(fails, tmp_path):
    def inspect(*words, out=tmp_path / "p.html"):
        return fails("data", "inspect", *words, f"--out={out}")

    assert "takes either PATH or --config=FILE" in inspect()
    assert "needs --out" in fails("data", "inspect", f"--config={TINY}")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(Path(TINY).read_text())
    assert "must end in .html" in inspect(f"--config={recipe}", out=recipe)
    assert recipe.read_text() == Path(TINY).read_text()
    assert "is a directory" in inspect(f"--config={TINY}", out=tmp_path)
    assert "--step=-1 must be 0 or more" in inspect(f"--config={TINY}", "--step=-1")
    assert "--count=0 1 or more" in inspect(f"--config={TINY}", "--count=0")
    assert "source.path=DIR" in inspect(UNFILLED)
    assert "no key 'sede'" in inspect(f"--config={TINY}", "--config.sede=1")
    assert "'bpe'" in inspect(f"--config={TINY}", "--config.tokenizer.name=pbe")
    assert not (tmp_path / "p.html").exists()


def test_a_wrong_measurement_is_one_line(fails, folder):
    def measure(*words):
        return fails("data", "bench", *words)

    assert "takes either PATH or --config=FILE" in measure()
    assert "--workers=a must be numbers" in measure(folder, "--workers=a")
    assert "must be above 0, and --workers=[0] 1 or more" in measure(folder, "--workers=0")
    assert "--seconds=0.0 must be above 0" in measure(folder, "--seconds=0")
    assert "--topology needs --config=FILE" in measure(folder, "--topology=v5e:16x16")
    assert "goes with --images_per_second" in measure(folder, "--hosts=4")
    words = (folder, "--images_per_second=9", "--hosts=0")
    assert "--hosts is 1 or more" in measure(*words)
    assert "must be above 0" in measure(folder, "--images_per_second=-3")
    assert "unknown chip 'v9'" in measure(f"--config={TINY}", "--topology=v9:1")
    assert "has no estimate of the time" in measure(f"--config={TINY}", "--topology=cpu:8")
    assert "source.path=DIR" in measure(UNFILLED)


def test_bad_data_cannot_be_measured(fails, tmp_path):
    table = write_csv(tmp_path / "t.csv", [{"image": "none.png", "caption": "text"}])
    assert "None of the first 64 samples is good: {'missing': 64}" in fails("data", "bench", table)


# What they do.


def test_a_folder_is_checked_by_its_path(folder, tmp_path, capsys):
    for form in (str(folder), f"--source={folder}"):
        out = tmp_path / form.partition("=")[0].strip("/").replace("/", "_")
        assert called("data", "check", form, f"--out={out}", "--workers=0") == 0
        printed = capsys.readouterr().out
        assert "3 of 3 samples can be trained on\ncaptions: 3, scripts Latin 3\n" in printed
        assert json.loads((out / "check.json").read_text())["good"] == 3


def test_the_data_of_a_recipe_are_checked_by_processes(tmp_path):
    # The recipe's source stands in its file, which the processes do not run.
    out = tmp_path / "r"
    words = (f"--config={TINY}", "--config.data.source.name=squares", "--workers=1")
    assert called("data", "check", *words, f"--out={out}") == 0
    figures = json.loads((out / "check.json").read_text())
    assert (figures["good"], figures["captions"]["texts"]) == (40, 80)


def test_a_batch_of_a_recipe_is_shown(tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    words = (f"--config={TINY}", "--step=2", "--count=5", "--config.seed=3")
    assert called("data", "inspect", *words, f"--out={out}") == 0
    assert capsys.readouterr().out == f"Wrote 4 rows of the batch of step 2 to {out}\n"
    assert out.read_text().count("<figure") == 4


def test_a_path_is_shown_as_clip_would_train_on_it(folder, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert called("data", "inspect", folder, "--count=2", f"--out={out}") == 0
    assert capsys.readouterr().out == f"Wrote 2 rows of the batch of step 0 to {out}\n"
    page = out.read_text()
    assert page.count("<figure") == 2 and "224 x 224" in page and str(folder) in page


def test_measurements_are_of_every_stage_and_number_of_workers(capsys):
    words = (f"--config={TINY}", "--workers=2,1", "--seconds=0.2", "--images_per_second=1e6")
    assert called("data", "bench", *words, "--hosts=3", "--json") == 0
    out = capsys.readouterr()
    found = json.loads(out.out)  # nothing else is printed there
    assert "measurement 9/9" in out.err
    assert [stage["name"] for stage in found["stages"]] == list(bench.STAGES)
    tried = [(whole["makers"], whole["count"]) for whole in found["whole"]]
    assert tried == [("threads", 1), ("threads", 2), ("processes", 1), ("processes", 2)]
    for rates in (*found["stages"], *found["whole"]):
        assert rates["samples_per_second"] > 0
    for whole in found["whole"]:
        assert whole["samples_per_cpu_second"] > 0
        memory = whole["mib_per_worker"]
        assert memory is None if whole["makers"] == "threads" else 20 < memory < 2000
    needs = found["needs"]
    assert needs["images_per_core"] == found["whole"][-1]["samples_per_cpu_second"]
    assert needs["cores"] == -(-1e6 // needs["images_per_core"])
    assert "10 cores" in bench.table(found | {"needs": {**needs, "cores": 10}})


def test_a_path_alone_can_be_measured(tmp_path, capsys):
    pattern = shards(tmp_path, 2, 200)
    assert called("data", "bench", pattern, "--workers=1", "--seconds=0.2") == 0
    out = capsys.readouterr()
    assert "whole pipeline" in out.out and "need" not in out.out
    assert "pictures of 224 x 224" in out.err


def test_needs_are_rounded_up_over_hosts():
    whole = [
        {"makers": "threads", "samples_per_cpu_second": 1.0},
        {"makers": "processes", "samples_per_cpu_second": 50.0},
        {"makers": "processes", "samples_per_cpu_second": 100.0},
    ]
    needs = bench.needs({"whole": whole}, 1001.0, 3)
    assert (needs["images_per_core"], needs["cores"], needs["cores_per_host"]) == (100, 11, 4)


def test_cpu_seconds_are_those_of_children_too():
    code = "import sys\nfor i in range(10**9): i * i\n"
    before = bench.cpu_seconds()
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        until = time.monotonic() + 60
        while bench.cpu_seconds() - before < 0.5 and time.monotonic() < until:
            time.sleep(0.05)
        assert bench.cpu_seconds() - before >= 0.5
        assert child.pid in bench.children()
        assert 1 < bench.resident_mib(child.pid) < 1000
    finally:
        child.kill()
        child.wait()
    assert bench.resident_mib(child.pid) == 0


# Ended from outside.


def started(out, tmp_path, after_s=1):
    """A check that takes long, in a group of its own, and its processes, once there are any."""
    recipe = tmp_path / "slow.py"
    recipe.write_text(
        f"import runpy\nmade = runpy.run_path({TINY!r})\n\n\ndef get_config():\n"
        "    made['get_config']()  # which brings the source\n"
        "    source = {'name': 'squares', 'count': 100000}\n"
        "    return made['config'](**{'data.source': source})\n"
    )
    command = [sys.executable, "-c", "from vlrep_jax.cli import main; main()", "data", "check"]
    command += [f"--config={recipe}", f"--out={out}", "--workers=2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "SQUARES_DELAY_S": "0.2", "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job, which tests may run in, ignores Ctrl-C; so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        theirs = scanners(process.pid)
        if len(theirs) >= (2 if after_s else 1):
            time.sleep(after_s)
            return process, theirs
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate())


def scanners(parent):
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(p) for p in pids if "spawn_main" in Path(f"/proc/{p}/cmdline").read_text()]


def gone(pids):
    """Whether processes end within a minute."""
    until = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("after_s", [0, 1])  # 0: while the processes are being started
def test_ctrl_c_leaves_nothing_behind(tmp_path, after_s):
    process, theirs = started(tmp_path / "r", tmp_path, after_s)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: all of them hear it
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "vlrep: interrupted." and "Traceback" not in err
    assert gone(theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["slow.py"]


def test_a_killed_process_is_one_line(tmp_path):
    process, theirs = started(tmp_path / "r", tmp_path)
    os.kill(theirs[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "A process that scans the data died" in err and "Traceback" not in err
    assert gone(theirs)


def test_processes_end_with_a_killed_parent(tmp_path):
    process, theirs = started(tmp_path / "r", tmp_path)
    process.kill()
    process.wait()
    assert gone(theirs)
    process.communicate()
