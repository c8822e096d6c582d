"""What `vlrep embed` does: picture files or lines of text through a trained model."""

import glob
from pathlib import Path

import numpy as np

from vlrep_jax.data.pipeline import eval_batches
from vlrep_jax.data.sources import Pictures
from vlrep_jax.run import load


def embed(
    workdir: Path, out: Path, *, images: str | None, texts: str | None, step: int | None
) -> None:
    """Embeds picture files or lines of text with a checkpoint of a work directory.

    Writes an .npz of `embeddings` float32[n, d], L2-normalised, and `paths` or `texts`, n strings.

    Args:
      images: glob pattern of picture files; those that cannot be read are named and left out.
      texts: UTF-8 file with one text a line; or give `images`.

    Raises:
      FileNotFoundError: no such run, checkpoint or file, or no file matches.
    """
    if out.suffix != ".npz":
        raise ValueError(f"--out={out} must end in .npz.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"--out={out}: there is no directory {out.absolute().parent}.")
    inputs = files(images) if images else lines_of(Path(texts))
    experiment, encoder, _ = load(workdir, step)
    if images:
        batches = eval_batches(
            Pictures(inputs),
            preprocess=experiment.preprocess,
            batch_size=encoder.batch_size,
        )
        readable = []

        def seen():
            for batch in batches:
                readable.extend(batch["weights"][batch["index"] >= 0] > 0)
                yield batch

        embeddings = encoder.images(seen())
        left_out = [path for path, good in zip(inputs, readable, strict=True) if not good]
        if left_out:
            print(f"Left out {len(left_out)} that cannot be read: {', '.join(left_out[:10])}")
        if len(left_out) == len(inputs):
            raise ValueError(f"None of the {len(inputs)} files is a picture that can be read.")
        embeddings = embeddings[readable]
        inputs = [path for path, good in zip(inputs, readable, strict=True) if good]
    else:
        embeddings = encoder.texts(inputs)
    part = out.with_suffix(".part.npz")
    np.savez(part, embeddings=embeddings, **{"paths" if images else "texts": np.array(inputs)})
    part.replace(out)
    print(f"Wrote {len(inputs)} embeddings of width {embeddings.shape[1]} to {out}")


def files(pattern):
    """Paths of a glob pattern, sorted."""
    found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    if not found:
        raise FileNotFoundError(f"--images={pattern} matches no file; quote it from the shell.")
    return found


def lines_of(path):
    """The lines of a text file, blank ones too: row i of the embeddings is line i."""
    if not path.is_file():
        raise FileNotFoundError(f"--texts={path}: there is no such file.")
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--texts={path} is not UTF-8: {error}.") from None
    if not any(line.strip() for line in lines):
        raise ValueError(f"--texts={path} holds no text.")
    return [line.removesuffix("\r") for line in lines]
