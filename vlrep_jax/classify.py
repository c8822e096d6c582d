"""`vlrep classify`: which of some labels fits each picture, by any model that can be loaded."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vlrep_jax import weights
from vlrep_jax.data.decoding import BadImage
from vlrep_jax.evals.zero_shot import class_embeddings
from vlrep_jax.terminal import one_line

SHOWN = 5  # labels a picture in the table


def run(
    model: str,
    images: Sequence[str],
    labels: Sequence[str],
    *,
    templates: Sequence[str] = ("{}",),
    as_json: bool = False,
    preset: str | None = None,
) -> None:
    """Prints a table of scores, or JSON lines: {"image": path, "scores": {label: score}}.

    Scores are a softmax over the labels, or the sigmoid of each pair alone where the model was
    trained so (SigLIP). Pictures that cannot be read are named on stderr and left out.

    Args:
      model: path, see `weights.load`.
      images: paths of picture files.
      labels: names of the classes, put into the templates.
      templates: prompts with one `{}` each; a class is the mean of its prompts.
      as_json: print JSON lines.
      preset: name of the architecture, where the files do not say.

    Raises:
      FileNotFoundError: no such model.
      ValueError: it cannot be loaded, labels are missing or double, or no picture can be read.
    """
    labels = [label.strip() for label in labels]
    if len(set(labels)) < len(labels) or not all(labels):
        raise ValueError(f"--labels={','.join(labels)}: they must differ, and none be empty.")
    loaded = weights.load(model, preset)
    text = class_embeddings(loaded.encode_text, labels, templates)
    readable, pixels = [], []
    for path in images:
        try:
            pixels.append(loaded.preprocess(path))
            readable.append(path)
        except BadImage as error:
            print(f"{one_line(path)} is left out: {error.why}", file=sys.stderr)
    if not readable:
        raise ValueError(f"none of the {len(images)} files is a picture that can be read.")
    found = loaded.scores(loaded.encode_image(pixels), text)
    if as_json:
        for path, row in zip(readable, found.tolist(), strict=True):
            print(json.dumps({"image": path, "scores": dict(zip(labels, row, strict=True))}))
        return
    names = [one_line(Path(path).name) for path in readable]
    width = max(map(len, names))
    column = max(map(len, labels)) + 2
    for name, row in zip(names, found, strict=True):
        best = sorted(zip(row, labels, strict=True), reverse=True)[:SHOWN]
        line = "".join(f"  {score:6.1%} {label:{column}}" for score, label in best)
        print(f"{name:{width}}{line}".rstrip())
