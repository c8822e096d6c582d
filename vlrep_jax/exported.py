"""Exported towers, run with only JAX and NumPy: nothing else of this package is needed.

`export.py` writes them.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax import export

FORMAT = "vlrep_jax export 1"
META = "export.json"
TOWERS = ("image", "text")


@dataclass(frozen=True)
class Exported:
    """Towers of a directory; each call compiles once a batch size and device.

    Attributes:
      encode_image: uint8[b, s, s, 3], pixels as the model's preprocessing makes them ->
        L2-normalised float32[b, d].
      encode_text: int32[b, l] -> L2-normalised float32[b, d].
      scale, bias: logits are scale * <image, text> + bias; bias is None in a model without one.
      image_size, context_length: s and l.
      preprocess: what makes the pixels, the arguments of `data.preprocess.Preprocess`.
      platforms: what the programs run on: 'cpu', 'cuda', 'tpu'.
    """

    encode_image: Callable
    encode_text: Callable
    scale: float
    bias: float | None
    image_size: int
    context_length: int
    preprocess: dict
    platforms: tuple[str, ...]


def load_exported(directory) -> Exported:
    """Reads what `export.export_towers` wrote.

    Raises:
      FileNotFoundError: it is no such directory, or a file is missing.
      ValueError: a file is damaged, of another format, or for other platforms than this one.
    """
    directory = Path(directory)
    if not (directory / META).is_file():
        raise FileNotFoundError(f"{directory} holds no exported model: there is no {META}.")
    try:
        meta = json.loads((directory / META).read_text(encoding="utf-8"))
        if meta["format"] != FORMAT:
            raise KeyError(meta["format"])
        shapes = {
            # Older ones are all of pictures.
            "image": (np.uint8, tuple(meta.get("image_shape", (*[meta["image_size"]] * 2, 3)))),
            "text": (np.int32, (meta["context_length"],)),
        }
        sums = {name: meta["sha256"][name] for tower in TOWERS for name in file_names(tower)}
        known = {name: meta[name] for name in ("scale", "bias", "image_size", "context_length")}
        known |= {"preprocess": meta["preprocess"], "platforms": tuple(meta["platforms"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{directory / META} is not of an exported model: {error!r}.") from error
    # JAX calls a GPU 'gpu' where programs are exported for 'cuda'.
    backend = jax.default_backend().replace("gpu", "cuda")
    if backend not in known["platforms"]:
        raise ValueError(
            f"{directory} was exported for {', '.join(known['platforms'])}, and this is "
            f"{backend}: export it again with that among its platforms."
        )
    for name, expected in sums.items():
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} lacks {name}, a part of the exported model.")
        if file_sum(directory / name) != expected:
            raise ValueError(f"{directory / name} is damaged: its sha256 is not that of {META}.")
    encode = {tower: _tower(directory, tower, *shapes[tower]) for tower in TOWERS}
    return Exported(encode_image=encode["image"], encode_text=encode["text"], **known)


def file_names(tower: str) -> tuple[str, str]:
    """(program, parameters) of a tower."""
    return f"{tower}.stablehlo", f"{tower}.npz"


def file_sum(path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tower(directory, tower, dtype, row_shape):
    """(array) -> embeddings, of a tower whose files are whole."""
    program, parameters = (directory / name for name in file_names(tower))
    try:
        exported = export.deserialize(bytearray(program.read_bytes()))
        with np.load(parameters, allow_pickle=False) as held:
            leaves = [jax.device_put(held[f"{i:05d}"]) for i in range(len(held.files))]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{directory}: the {tower} tower cannot be read: {error}") from error
    call = jax.jit(exported.call)

    def encode(batch):
        given = f"{getattr(batch, 'dtype', type(batch).__name__)}{list(np.shape(batch))}"
        wanted = f"{np.dtype(dtype)}[b, {', '.join(map(str, row_shape))}]"
        if getattr(batch, "dtype", None) != dtype or np.shape(batch)[1:] != row_shape:
            raise ValueError(f"The {tower} tower takes {wanted}, not {given}.")
        if not len(batch):
            raise ValueError(f"The {tower} tower takes {wanted} with at least one row.")
        return call(leaves, batch)

    return encode
