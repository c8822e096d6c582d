"""The launchers by their validators, and `tpu_pod.sh` with a `gcloud` that is made up.

`launch/local.py` runs for real in tests/faults, `slurm.sbatch` in tests/slurm.
"""

import copy
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vlrep_jax import addresses
from vlrep_jax.exits import STOPPED_CODE, USER_ERROR_CODE

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"


def shellcheck(*paths, text=None):
    """What shellcheck finds in files, or in a bash script."""
    program = Path(sys.executable).with_name("shellcheck")
    command = [str(program), "--format=gcc", *(map(str, paths) if paths else ("-s", "bash", "-"))]
    return subprocess.run(command, input=text, capture_output=True, text=True).stdout


def test_the_scripts_pass_shellcheck():
    assert shellcheck(LAUNCH / "tpu_pod.sh", LAUNCH / "slurm.sbatch") == ""
    tasks = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    for part in ("setup", "run"):
        assert shellcheck(text=tasks[part]) == "", part
    assert "SC2086" in shellcheck(text="rm $unquoted")  # it looks


# GKE.


def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def foreign(given, known, path=""):
    """Paths of what a manifest has and its schema does not; what the schema adds is left out."""
    if isinstance(given, dict) and isinstance(known, dict):
        pairs = [(value, known.get(name), f"{path}/{name}") for name, value in given.items()]
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        pairs = [(*pair, f"{path}/{i}") for i, pair in enumerate(zip(given, known, strict=True))]
    else:
        return [] if given == known else [path]
    return [name for pair in pairs for name in foreign(*pair)]


def in_schema(manifest):
    """A manifest as the models of the JobSet API read it: types checked, unknown names dropped."""
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    return JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest)).to_dict()


def test_the_jobset_is_one():
    assert foreign(jobset(), in_schema(jobset())) == []
    wrong = jobset()
    job = wrong["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["template"]["spec"]["terminationGraceSeconds"] = 120
    (path,) = foreign(wrong, in_schema(wrong))
    assert path.endswith("/terminationGraceSeconds")
    job["parallelism"] = "eight"
    with pytest.raises(ValueError, match="parallelism"):
        in_schema(wrong)


def test_the_jobset_has_a_pod_for_each_host_and_restarts_all_but_mistakes():
    spec = jobset()["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(sides[0]) * int(sides[1])
    assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
    assert job["completions"] == job["parallelism"] and job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [USER_ERROR_CODE]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    (of_set,) = spec["failurePolicy"]["rules"]
    assert (of_set["action"], of_set["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert_flags_known(container["args"])


def assert_flags_known(words):
    """`vlrep` takes these words."""
    from vlrep_jax.cli import parse

    args, _ = parse([word for word in words if word != "\\"])
    assert args.command == "train" and args.workdir


def test_the_image_has_what_it_starts():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    names = [name for name, _ in steps]
    assert names[0] == "FROM" and names[-1] == "ENTRYPOINT" and names.count("FROM") == 1
    for name, rest in steps:
        if name == "COPY":
            assert all((ROOT / path).exists() for path in rest.split()[:-1]), rest
    # Not a shell's form: the command must be the process that the kubelet tells to stop.
    assert json.loads(steps[-1][1]) == ["vlrep"]
    setup = (ROOT / "setup.py").read_text()
    assert 'console_scripts": ["vlrep = vlrep_jax.cli:main"]' in setup
    (extra,) = (rest.split("=")[1] for name, rest in steps if name == "ARG")
    assert f'"{extra}": [' in setup
    assert (ROOT / jobset_config()).exists()


def jobset_config():
    job = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return job["containers"][0]["args"][1].removeprefix("--config=")


# SkyPilot.


def test_the_task_names_flags_and_codes_that_there_are():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [STOPPED_CODE]
    assert (ROOT / task["envs"]["CONFIG"]).exists()
    shown = subprocess.run(
        ["bash", "-c", "vlrep() { printf '%s\\n' \"$@\"; }\n" + task["run"].replace("exec ", "")],
        env={
            **{"CONFIG": "c.py", "WORKDIR": "w", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"},
            **{"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"},
        },
        capture_output=True,
        text=True,
        check=True,
    )
    words = shown.stdout.splitlines()
    assert words[-3:] == ["--coordinator=10.0.0.1:8476", "--processes=2", "--process=1"]
    assert_flags_known(words)


def test_skypilot_takes_the_task(monkeypatch):
    """By SkyPilot's own schema and parser, where it is installed; a stage of .ci/run does."""
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    sky = pytest.importorskip("sky")
    schemas = pytest.importorskip("sky.utils.schemas")
    validator = pytest.importorskip("jsonschema").Draft7Validator(schemas.get_task_schema())
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    validator.validate(task)
    made = sky.Task.from_yaml_config(copy.deepcopy(task))
    (resources,) = made.resources
    assert made.num_nodes == 2 and resources.use_spot
    assert resources.job_recovery["recover_on_exit_codes"] == [STOPPED_CODE]
    task["num_node"] = 2
    with pytest.raises(Exception, match="num_node"):
        validator.validate(task)


# Cloud TPUs.

GCLOUD = r"""
import os, re, subprocess, sys
home, words = os.environ["HOME"], sys.argv[1:]
with open(f"{home}/asked", "a") as file:
    file.write(" ".join(words) + "\n")
flags = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
made = f"{home}/made"
if "create" in words:
    open(made, "w").write("")
elif "delete" in words:
    os.remove(made)
elif "describe" in words:
    if not os.path.exists(made):
        sys.exit(1)
    with open(f"{home}/turns", "a+") as file:
        states = os.environ["STATES"].split()
        file.seek(0)
        turn = len(file.read())
        file.write("x")
    print(states[min(turn, len(states) - 1)])
elif "ssh" in words:
    sys.exit(subprocess.run(["bash", "-c", flags["--command"]], cwd=home).returncode)
"""
# Stops of itself at first; then it is told to, or ends.
VLREP = r"""
import os, signal, sys, time
home = os.environ["HOME"]
with open(f"{home}/starts", "a+") as file:
    file.write(repr(sys.argv[1:]) + "\n")
    file.seek(0)
    starts = len(file.readlines())
if starts == 1:
    sys.exit(42)
if os.environ["ENDS"] == "0":
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
print("waiting", flush=True)
time.sleep(60)
sys.exit(9)
"""
# Of this test's own processes.
PKILL = r"""
import os, pathlib, re, signal, sys
mine = f"HOME={os.environ['HOME']}".encode()
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        if mine in (process / "environ").read_bytes().split(b"\0"):
            if int(process.name) != os.getpid() and re.search(sys.argv[3], command):
                os.kill(int(process.name), signal.SIGTERM)
    except OSError:
        pass
"""


def pod(tmp_path, states, ends):
    """`tpu_pod.sh` with programs of that name before the real ones."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "vlrep_jax").mkdir()  # where scp would have put it
    programs = {"gcloud": GCLOUD, "vlrep": VLREP, "pkill": PKILL, "pip": "", "sleep": ""}
    for name, text in programs.items():
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    made = {"PROJECT": "p", "ZONE": "z", "HOME": str(tmp_path), "STATES": states, "ENDS": ends}
    return subprocess.Popen(
        [str(LAUNCH / "tpu_pod.sh"), "pod", "v4-256", "gs://b/a run", "c.py", "--config.seed=1"],
        env=made | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def asked(tmp_path):
    """Which of gcloud's commands were asked for, in order, each once in a row."""
    words = [
        re.search(r"create|delete|describe|scp|ssh", line)[0]
        for line in (tmp_path / "asked").read_text().splitlines()
        if "compute tpus" in line
    ]
    return [w for i, w in enumerate(words) if i == 0 or words[i - 1] != w]


def test_a_pod_is_asked_for_set_up_and_started_again_after_a_stop(tmp_path):
    with pod(tmp_path, "WAITING_FOR_RESOURCES SUSPENDED ACTIVE", "0") as launched:
        said, _ = launched.communicate(timeout=90)
    assert launched.returncode == 0, said
    begin = ["describe", "create", "describe", "delete", "describe", "create", "describe"]
    assert asked(tmp_path)[:7] == begin and asked(tmp_path)[-2:] == ["scp", "ssh"]
    expected = ["train", "--config=c.py", "--workdir=gs://b/a run", "--config.seed=1"]
    starts = (tmp_path / "starts").read_text().splitlines()
    assert starts == [repr(expected)] * 2


def test_a_pod_that_is_told_to_stop_passes_it_on_and_says_how_it_ended(tmp_path):
    with pod(tmp_path, "ACTIVE", "told") as launched:
        assert launched.stdout.readline() == "waiting\n"
        launched.send_signal(signal.SIGTERM)
        began = time.monotonic()
        said, _ = launched.communicate(timeout=90)
    assert launched.returncode == STOPPED_CODE, said
    assert time.monotonic() - began < 50  # it did not wait for what was not told
    assert len((tmp_path / "starts").read_text().splitlines()) == 2


# Mistakes.


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["local.py", "--processes=0", "--", "true"], "--processes=0 must be at least 1"),
        (["local.py", "--processes=2", "--restarts=-1", "--", "true"], "must not be negative"),
        (["local.py", "--processes=2", "--", "no-such-program"], "no program 'no-such-program'"),
        (["tpu_pod.sh"], "PROJECT=p ZONE="),
        (["tpu_pod.sh", "name", "v4-8", "gs://b/r", "c.py"], "set PROJECT to the Google Cloud"),
    ],
)
def test_a_mistake_is_told_with_exit_code_2(command, message):
    program = LAUNCH / command[0]
    python = [sys.executable] if program.suffix == ".py" else []
    without = {k: v for k, v in os.environ.items() if k not in ("PROJECT", "ZONE")}
    done = subprocess.run(
        [*python, str(program), *command[1:]], env=without, capture_output=True, text=True
    )
    assert done.returncode == USER_ERROR_CODE
    assert message in done.stderr and "Traceback" not in done.stderr


def test_an_address_at_which_process_0_cannot_listen_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        places = (f"127.0.0.1:{port}", f"203.0.113.9:{port}", f"no.such.host.invalid:{port}")
        for place in places:
            with pytest.raises(ValueError, match=rf"Process 0 cannot listen at {place} \("):
                addresses.check_listens(place)
    addresses.check_listens(f"127.0.0.1:{port}")
