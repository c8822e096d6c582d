"""OpenAI's names, which OpenCLIP's own towers have too, and the architecture read from shapes."""

from collections.abc import Mapping

from vlrep_jax.models import PRESETS
from vlrep_jax.weights import coca, resnet
from vlrep_jax.weights.layout import pools_largest_id
from vlrep_jax.weights.mapping import Entry, block, linear, norm, repeated

# What OpenAI's archives hold beside parameters.
NOT_PARAMETERS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def is_layout(keys) -> bool:
    """Whether tensors are named as OpenAI names them."""
    return "visual.class_embedding" in keys or "visual.layer1.0.conv1.weight" in keys


def entries(model) -> list[Entry]:
    """The entries of a CLIP model.

    Raises:
      ValueError: the layout has no place for something in it.
    """
    _check(model)
    return [
        *image_entries(model.image),
        *text_entries(model.text, ""),
        Entry("logit_scale", "logit_scale"),
    ] + [Entry("logit_bias", "logit_bias")] * (model.bias_init is not None)


def image_entries(tower, prefix: str = "visual") -> list[Entry]:
    """An image tower whose tensors begin with `prefix.`."""
    if not hasattr(tower, "patch_size"):
        return resnet.entries(tower, prefix)
    p = prefix
    found = [
        Entry("image/patch_embedding/kernel", f"{p}.conv1.weight", "conv"),
        Entry("image/positional_embedding", f"{p}.positional_embedding"),
        *norm("image/ln_post", f"{p}.ln_post"),
        *layers("image/transformer", f"{p}.transformer.resblocks", tower.depth),
    ]
    if tower.pool in ("cls", "patches", "queries"):
        found.append(Entry("image/class_embedding", f"{p}.class_embedding"))
    if tower.pre_norm:
        found += norm("image/ln_pre", f"{p}.ln_pre")
    if tower.pool == "queries":
        found += coca.pool_entries(tower, f"{p}.attn_pool")
    if tower.embed_dim is not None:
        found.append(Entry("image/projection/kernel", f"{p}.proj"))
    return found


def text_entries(tower, prefix: str) -> list[Entry]:
    """A text transformer whose tensors begin with `prefix`."""
    found = [
        Entry("text/token_embedding/embedding", f"{prefix}token_embedding.weight"),
        Entry("text/positional_embedding", f"{prefix}positional_embedding"),
        *layers("text/transformer", f"{prefix}transformer.resblocks", tower.depth),
        *norm("text/ln_final", f"{prefix}ln_final"),
    ]
    if tower.pool == "cls":
        found.append(Entry("text/class_embedding", f"{prefix}cls_emb"))
    if tower.embed_dim is not None and tower.projection_bias:
        found += linear("text/projection", f"{prefix}text_projection")
    elif tower.embed_dim is not None:
        found.append(Entry("text/projection/kernel", f"{prefix}text_projection"))
    return found


def layers(path: str, key: str, depth: int) -> list[Entry]:
    """The layers of a transformer: ours are stacked, theirs are numbered."""

    return repeated(depth, lambda i: block(f"{path}/layers", f"{key}.{i}", i))


def _check(model):
    """Raises ValueError where a model is not what OpenAI's code builds."""
    image, text = model.image, model.text
    activations = {text.activation, getattr(image, "activation", text.activation)}
    against = [
        f"{label} (there {value})"
        for label, wrong, value in (
            (f"activation {sorted(activations)}", activations != {"quick_gelu"}, "quick_gelu"),
            (f"text.pool={text.pool!r}", not pools_largest_id(text), "eot"),
            ("a text tower that is not causal", not text.causal, "it is"),
            ("a bias in the text projection", text.projection_bias, "none"),
            ("a logit bias", model.bias_init is not None, "none"),
            ("text.heads", text.heads * 64 != text.width, "64 wide"),
            ("a tower without a projection", None in (image.embed_dim, text.embed_dim), "one"),
        )
        if wrong
    ]
    if hasattr(image, "patch_size"):
        against += [
            f"{label} (there {value})"
            for label, wrong, value in (
                (f"image.pool={image.pool!r}", image.pool != "cls", "cls"),
                ("image.pre_norm=False", not image.pre_norm, "True"),
                ("image.patch_bias=True", image.patch_bias, "False"),
                (f"image.stem={image.stem!r}", image.stem != "patch", "patch"),
                ("image.heads", image.heads * 64 != image.width, "64 wide"),
            )
            if wrong
        ]
    for tower in (image, text):
        if getattr(tower, "mlp_dim", None) not in (None, 4 * tower.width):
            against.append(f"mlp_dim={tower.mlp_dim} (there four times the width)")
        if getattr(tower, "ln_eps", 1e-5) != 1e-5:
            against.append(f"ln_eps={tower.ln_eps} (there 1e-05)")
    if against:
        raise ValueError(f"OpenAI's layout cannot express {'; '.join(against)}.")


def section_from_shapes(shapes: Mapping[str, tuple[int, ...]], activation: str) -> dict:
    """The config section of a CLIP whose tensors have these shapes.

    Heads are those of the published models of that width; all of OpenAI's are 64 wide.

    Raises:
      ValueError: a tensor that decides a size is missing.
    """
    try:
        return {
            "name": "dual_encoder",
            "image": _image_section(shapes, activation),
            "text": _text_section(shapes, activation),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"the architecture cannot be read from its shapes: {error}") from None


def _image_section(shapes, activation):
    if "visual.layer1.0.conv1.weight" in shapes:
        return resnet.section(shapes)
    width, _, patch_size, _ = shapes["visual.conv1.weight"]
    grid = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
    return {
        "name": "vit",
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "width": width,
        "depth": count_layers(shapes, "visual.transformer.resblocks"),
        "heads": _heads("image", width),
        "mlp_dim": shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        "embed_dim": shapes["visual.proj"][1],
        "activation": activation,
    }


def _text_section(shapes, activation):
    vocab_size, width = shapes["token_embedding.weight"]
    return {
        "name": "text_transformer",
        "vocab_size": vocab_size,
        "context_length": shapes["positional_embedding"][0],
        "width": width,
        "depth": count_layers(shapes, "transformer.resblocks"),
        "heads": _heads("text", width),
        "mlp_dim": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "embed_dim": shapes["text_projection"][1],
        "activation": activation,
    }


def _heads(side, width):
    """How many heads a tower of CLIP has: no shape tells."""
    if width < 64:
        raise ValueError(f"the {side} tower is {width} wide, and CLIP's heads are 64.")
    return next(
        (
            section[side]["heads"]
            for section in PRESETS.values()
            if section.get("bias_init") is None
            and section.get(side, {}).get("width") == width
            and section[side]["name"] != "resnet"
        ),
        width // 64,
    )


def count_layers(names, prefix: str) -> int:
    """How many numbered layers there are below a prefix."""
    after = len(prefix) + 1
    numbers = {name[after:].split(".")[0] for name in names if name.startswith(f"{prefix}.")}
    return 1 + max((int(n) for n in numbers if n.isdigit()), default=-1)
