"""Writes the towers of a model as StableHLO programs that run without the model's code.

A directory holds, for the image and the text tower each, a program (`jax.export`, its batch size
left open) and its parameters as an .npz without pickles, and export.json. Parameters stand beside
the program, not in it: as constants they would be compiled with it, once for every batch size.
`exported.py` reads it.
"""

import json
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vlrep_jax import models
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.exported import FORMAT, META, TOWERS, file_names, file_sum
from vlrep_jax.objectives import normalizer
from vlrep_jax.whole import whole

PLATFORMS = ("cpu", "cuda", "tpu")


def export_towers(
    model, params, directory, *, preprocess: Preprocess, platforms=PLATFORMS
) -> list[Path]:
    """Writes a model's image and text tower for `exported.load_exported`.

    The image tower takes uint8 pixels: normalisation is in the program.

    Args:
      model: made by `models.create`; its attention has to be 'xla', the one for all platforms.
      params: its parameters.
      directory: a new one.
      preprocess: makes the pixels; its mean and std go into the program, the rest is written down.
      platforms: what the programs shall run on, whatever this machine is.

    Returns:
      The paths written.

    Raises:
      FileExistsError: the directory exists, and is not empty.
      OSError: it cannot be written.
      ValueError: a preprocessing of another image size, or a tower with a kernel of one platform.
    """
    directory = Path(directory)
    image_size, context_length = models.input_sizes(model)
    if preprocess.size != image_size:
        raise ValueError(
            f"preprocess makes pictures of {preprocess.size} pixels, the model takes {image_size}."
        )
    _check_attention(model)
    normalize = normalizer(preprocess.mean, preprocess.std)
    takes = {
        "image": ("encode_image", normalize, models.image_shape(model), jnp.uint8),
        "text": ("encode_text", lambda tokens: tokens, (context_length,), jnp.int32),
    }
    scale, bias = model.apply({"params": params}, method="scale_and_bias")
    names = []
    with whole(directory) as part:
        part.mkdir()
        for tower in TOWERS:
            method, prepare, row_shape, dtype = takes[tower]

            def encode(params, batch, method=method, prepare=prepare):
                return model.apply({"params": params}, prepare(batch), method=method)

            program, leaves = _program(encode, params, row_shape, dtype, platforms)
            code, values = file_names(tower)
            (part / code).write_bytes(program)
            np.savez(part / values, **{f"{i:05d}": np.asarray(x) for i, x in enumerate(leaves)})
            names += [code, values]
        meta = {
            "format": FORMAT,
            "jax": jax.__version__,
            "platforms": list(platforms),
            "image_shape": models.image_shape(model),
            "image_size": image_size,
            "context_length": context_length,
            "scale": float(scale),
            "bias": None if bias is None else float(bias),
            "preprocess": asdict(preprocess),
            "sha256": {name: file_sum(part / name) for name in names},
        }
        (part / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return [directory / name for name in (*names, META)]


def _program(encode, params, row_shape, dtype, platforms):
    """(serialized program of (used leaves, batch), the leaves that it uses)."""
    leaves, tree = jax.tree.flatten(params)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    one = jax.ShapeDtypeStruct((1, *row_shape), dtype)
    traced = jax.make_jaxpr(lambda leaves, batch: encode(tree.unflatten(leaves), batch))(
        shapes, one
    )
    read = {id(x) for equation in traced.jaxpr.eqns for x in equation.invars}
    used = [i for i, x in enumerate(traced.jaxpr.invars[: len(leaves)]) if id(x) in read]

    def of_used(kept, batch):
        # The rest is the other tower's: shapes that nothing reads.
        all_leaves = list(shapes)
        for i, leaf in zip(used, kept, strict=True):
            all_leaves[i] = leaf
        return encode(tree.unflatten(all_leaves), batch)

    (b,) = export.symbolic_shape("b")
    batch = jax.ShapeDtypeStruct((b, *row_shape), dtype)
    of = export.export(jax.jit(of_used), platforms=platforms)
    program = of([shapes[i] for i in used], batch)
    return bytes(program.serialize()), [leaves[i] for i in used]


def _check_attention(model):
    for tower in (model, getattr(model, "image", None), getattr(model, "text", None)):
        attention = getattr(tower, "attention", "xla")
        if attention != "xla":
            raise ValueError(
                f"attention={attention!r} is a kernel of one platform: make the model with "
                "attention='xla'; the parameters are the same."
            )
