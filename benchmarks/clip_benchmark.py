"""The package clip_benchmark and `vlrep compare` on one model, the same pictures and prompts.

Run: python benchmarks/emoji_sets.py data SETS
     python benchmarks/clip_benchmark.py MODEL SETS PACKAGES

MODEL is anything that `vlrep` reads and OpenCLIP's layout can express; it is written in that layout
and evaluated by clip_benchmark's own command through open_clip, from WebDataset shards of the
pictures in SETS. PACKAGES is a directory with what only clip_benchmark needs, made by

pip install --target PACKAGES --no-deps clip_benchmark==1.6.2 webdataset braceexpand \\
    pycocoevalcap pycocotools 'numpy<2.4'

beside the extras `parity` and `quickstart`; its accuracy fails with NumPy 2.4. Exits with 1 where
figures differ by over 0.1 point.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

POINT = 0.1
KS = (1, 5, 10)
# clip_benchmark's name of each of our metrics.
CLASSIFICATION = {"top1": "acc1", "top5": "acc5", "mean_per_class": "mean_per_class_recall"}
RETRIEVAL = {f"image_to_text_recall@{k}": f"text_retrieval_recall@{k}" for k in KS}
RETRIEVAL |= {f"text_to_image_recall@{k}": f"image_retrieval_recall@{k}" for k in KS}
# Its command line, once torchvision's missing operators are declared. This file's directory is on
# the path for `sides` alone: in it, this file would be found as the package `clip_benchmark`.
COMMAND = """
import sys, torch
sys.path.insert(0, {here!r}); import sides; del sys.path[0]
sides.declare_missing_operators(torch)
from clip_benchmark.cli import main
main()
"""


def main(model, sets, packages):
    """Prints both columns; returns the exit code."""
    from vlrep_jax import suite, weights
    from vlrep_jax.data.class_files import names_of, read_templates
    from vlrep_jax.data.labelled import open_labelled

    classified, captioned = (open_labelled(sets / one) for one in ("twemoji", "captions.csv"))
    templates = read_templates(sets / "templates.txt")
    names = [own[0] for own in names_of(classified.classes)]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        weights.save(scratch / "model", weights.load(model), "openclip")
        theirs = {}
        for task, data in (("classification", classified), ("retrieval", captioned)):
            root = scratch / task
            write_shard(root, data.splits["test"], names, templates, task)
            theirs |= their_metrics(root, f"zeroshot_{task}", scratch, packages)
    say = lambda line: None  # noqa: E731
    ours = {}
    for data, suites in ((classified, ["zero_shot"]), (captioned, ["retrieval"])):
        known = dict(templates=templates, suites=suites, options=suite.Options(ks=KS), say=say)
        (found,) = suite.compare([model], data, **known).models
        ours |= found["metrics"][suites[0]]
    print(f"{'':24}{'vlrep':>8}{'clip_benchmark':>16}")
    agree = True
    for mine, its in (CLASSIFICATION | RETRIEVAL).items():
        a, b = 100 * ours[mine], 100 * theirs[its]
        agree &= abs(a - b) <= POINT
        print(f"{mine:24}{a:8.2f}{b:16.2f}{'' if abs(a - b) <= POINT else '  differ'}")
    return 0 if agree else 1


def write_shard(root, split, names, templates, task):
    """A WebDataset as clip_benchmark reads it from a directory."""
    (root / "test").mkdir(parents=True)
    (root / "test/nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text(task)
    (root / "classnames.txt").write_text("\n".join(names))
    prompts = [template.replace("{}", "{c}") for template in templates]
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(prompts))
    with tarfile.open(root / "test/0.tar", "w") as tar:
        for i, sample in enumerate(split.source.__getitems__(range(len(split.source)))):
            own = [split.captions[j] for j in (split.image_of_caption == i).nonzero()[0]]
            texts = {"cls": str(split.labels[i]), "txt": "\n".join(own)}
            kind = "txt" if task == "retrieval" else "cls"
            for ending, data in (("png", sample.image), (kind, texts[kind].encode())):
                member = tarfile.TarInfo(f"{i:06}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def their_metrics(root, task, scratch, packages):
    """What clip_benchmark's command measures on a shard."""
    out = scratch / f"{task}.json"
    words = ["eval", "--dataset", f"wds/{root.name}", "--dataset_root", str(root), "--task", task]
    words += ["--model", f"local-dir:{scratch / 'model'}", "--pretrained", ""]
    words += ["--no_amp", "--num_workers", "0", "--output", str(out), "--quiet"]
    words += ["--recall_k", *map(str, KS)]
    code = COMMAND.format(here=str(Path(__file__).resolve().parent))
    path = os.pathsep.join([str(packages.resolve()), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=scratch,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"clip_benchmark failed:\n{done.stdout}{done.stderr}")
    return json.loads(out.read_text())["metrics"]


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], *map(Path, sys.argv[2:])))
