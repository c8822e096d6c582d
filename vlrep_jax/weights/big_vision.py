"""big_vision's names: SigLIP's `.npz` files, their layers numbered or stacked by a scan.

Arrays have the shapes they have here, for both are Flax. The file holds no config: what its shapes
do not tell is what big_vision's SigLIP has (tanh GELU, epsilon 1e-6, no mask, the last position).
"""

from collections.abc import Mapping

from vlrep_jax.models import PRESETS
from vlrep_jax.weights.mapping import Entry, below, repeated

_HEADS = ("query", "key", "value", "out")


def is_layout(keys) -> bool:
    """Whether arrays are named as big_vision names them."""
    return f"{root(keys)}img/embedding/kernel" in keys


def root(keys) -> str:
    """'params/', which some files have before every name and some have not."""
    return "params/" if any(key.startswith("params/") for key in keys) else ""


def section(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """The config section of the model whose arrays have these shapes.

    Raises:
      ValueError: an array that decides a size is missing.
    """
    top = root(shapes)
    try:
        patch_size, _, _, width = shapes[f"{top}img/embedding/kernel"]
        grid = round(shapes[f"{top}img/pos_embedding"][1] ** 0.5)
        vocab_size, _ = shapes[f"{top}txt/Embed_0/embedding"]
        image_size = _image_size(grid, patch_size, width, vocab_size)
        shared = {"activation": "gelu_tanh", "ln_eps": 1e-6}
        return {
            "name": "dual_encoder",
            "scale_init": 10.0,
            "bias_init": -10.0,
            "image": {
                "name": "vit",
                "image_size": image_size,
                "drop_edge": image_size % patch_size > 0,
                "patch_size": patch_size,
                "pool": "map",
                "pre_norm": False,
                "patch_bias": True,
                **_tower(shapes, f"{top}img/Transformer/"),
                **shared,
            },
            "text": {
                "name": "text_transformer",
                "vocab_size": vocab_size,
                "context_length": shapes[f"{top}txt/pos_embedding"][1],
                "causal": False,
                "pool": "last",
                **_head(shapes.get(f"{top}txt/head/kernel")),
                **_tower(shapes, f"{top}txt/Encoder_0/"),
                **shared,
            },
        }
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"it is not a SigLIP of big_vision; its shapes do not tell {error}."
        ) from None


def _head(kernel):
    """The text tower's last map, which SigLIP of many languages at So400m has not."""
    return {"embed_dim": kernel and kernel[1], "projection_bias": kernel is not None}


def _image_size(grid, patch_size, width, vocab_size):
    """Pixels of a side: those of a published model of these sizes, or of the grid of patches.

    So400m/14 was trained at 384, of which 27 patches leave 6 pixels over; its successor at 378.
    """
    known = {
        section["image"]["image_size"]
        for section in PRESETS.values()
        if section.get("bias_init") is not None
        and section["image"]["image_size"] // section["image"]["patch_size"] == grid
        and section["image"]["patch_size"] == patch_size
        and section["image"]["width"] == width
        and section["text"]["vocab_size"] == vocab_size
    }
    return max(known, default=grid * patch_size)


def _tower(shapes, prefix):
    depth = _depth(shapes, prefix)
    block = f"{prefix}encoderblock_0/" if depth else f"{prefix}encoderblock/"
    width, heads, _ = shapes[f"{block}MultiHeadDotProductAttention_0/query/kernel"][-3:]
    return {
        "width": width,
        "depth": depth or shapes[f"{block}LayerNorm_0/scale"][0],
        "heads": heads,
        "mlp_dim": shapes[f"{block}MlpBlock_0/Dense_0/kernel"][-1],
    }


def _depth(keys, prefix):
    """Number of layers where they are numbered; 0 where they are stacked."""
    start = f"{prefix}encoderblock_"
    return len({key[len(start) :].split("/")[0] for key in keys if key.startswith(start)})


def entries(model, keys=()) -> list[Entry]:
    """The entries of a SigLIP model.

    Args:
      model: a dual encoder.
      keys: of the file that is read; it decides whether layers are stacked there. Files are
        written with numbered layers below `params/`.

    Raises:
      ValueError: the layout has no place for something in it.
    """
    _check(model)
    stacked = {
        prefix: bool(keys) and not _depth(keys, f"{root(keys)}{prefix}")
        for prefix in ("img/Transformer/", "txt/Encoder_0/")
    }
    found = [
        Entry("image/patch_embedding/kernel", "img/embedding/kernel"),
        Entry("image/patch_embedding/bias", "img/embedding/bias"),
        Entry("image/positional_embedding", "img/pos_embedding", "row"),
        *_layers("image", "img/Transformer/", model.image.depth, stacked["img/Transformer/"]),
        *_norm("image/ln_post", "img/Transformer/encoder_norm"),
        Entry("image/pool/probe", "img/MAPHead_0/probe"),
        *_attention("image/pool/attn", "img/MAPHead_0/MultiHeadDotProductAttention_0"),
        *_norm("image/pool/ln", "img/MAPHead_0/LayerNorm_0"),
        *_mlp("image/pool/mlp", "img/MAPHead_0/MlpBlock_0"),
        Entry("text/token_embedding/embedding", "txt/Embed_0/embedding"),
        Entry("text/positional_embedding", "txt/pos_embedding", "row"),
        *_layers("text", "txt/Encoder_0/", model.text.depth, stacked["txt/Encoder_0/"]),
        *_norm("text/ln_final", "txt/Encoder_0/encoder_norm"),
        *(_dense("text/projection", "txt/head") if model.text.embed_dim is not None else []),
        Entry("logit_scale", "t", "flat"),
        Entry("logit_bias", "b", "flat"),
    ]
    return below(found, root(keys) if keys else "params/")


def _layers(side, prefix, depth, stacked):
    def layer(i):
        ours = f"{side}/transformer/layers"
        at = {"layer": i} | ({"row": i} if stacked else {})
        block = f"{prefix}encoderblock" + ("" if stacked else f"_{i}")
        return [
            *_norm(f"{ours}/ln_1", f"{block}/LayerNorm_0", **at),
            *_attention(f"{ours}/attn", f"{block}/MultiHeadDotProductAttention_0", **at),
            *_norm(f"{ours}/ln_2", f"{block}/LayerNorm_1", **at),
            *_mlp(f"{ours}/mlp", f"{block}/MlpBlock_0", **at),
        ]

    return repeated(depth, layer)


def _pairs(path, key, leaves, **at):
    return [Entry(f"{path}/{leaf}", f"{key}/{leaf}", **at) for leaf in leaves]


def _norm(path, key, **at):
    return _pairs(path, key, ("scale", "bias"), **at)


def _dense(path, key, **at):
    return _pairs(path, key, ("kernel", "bias"), **at)


def _attention(path, key, **at):
    return [e for name in _HEADS for e in _dense(f"{path}/{name}", f"{key}/{name}", **at)]


def _mlp(path, key, **at):
    return [
        *_dense(f"{path}/fc1", f"{key}/Dense_0", **at),
        *_dense(f"{path}/fc2", f"{key}/Dense_1", **at),
    ]


def _check(model):
    """Raises ValueError where a model is not what big_vision's SigLIP code builds."""
    wanted = {
        "image": {"pool": "map", "pre_norm": False, "patch_bias": True, "embed_dim": None}
        | {"stem": "patch"},
        "text": {"causal": False, "pool": "last"},
    }
    if getattr(model.text, "embed_dim", None) is not None:
        wanted["text"] |= {"projection_bias": True}
    against = []
    for side, options in wanted.items():
        tower = getattr(model, side, None)
        options |= {"activation": "gelu_tanh", "ln_eps": 1e-6}
        against += [
            f"{side}.{name}={getattr(tower, name, None)!r} (there {value!r})"
            for name, value in options.items()
            if getattr(tower, name, None) != value
        ]
    if getattr(model, "bias_init", None) is None:
        against.append("a model without a bias")
    if against:
        raise ValueError(f"big_vision's SigLIP cannot express {'; '.join(against)}.")
