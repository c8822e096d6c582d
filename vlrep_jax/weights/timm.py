"""timm's names: the image tower of SigLIP as OpenCLIP builds it, below `visual.trunk.`."""

import re

from vlrep_jax.weights.mapping import Entry, linear, norm, packed_heads, repeated

# size -> (width, depth, heads, mlp_dim)
SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
_NAME = re.compile(r"vit_([a-z0-9]+)_patch(\d+)_siglip_(\d+)")
# The towers by name, and what each has for an activation: most have the exact GELU, though all of
# SigLIP was trained with the tanh one.
ACTIVATIONS = {
    f"vit_{size}_patch{patch}_siglip_{pixels}": activation
    for size, patch, sizes, activation in (
        ("base", 32, (256,), "gelu_tanh"),
        ("base", 16, (224, 256, 384, 512), "gelu"),
        ("large", 16, (256, 384), "gelu"),
        ("large", 16, (512,), "gelu_tanh"),
        ("so400m", 14, (224, 378, 384), "gelu"),
        ("so400m", 16, (256, 384, 512), "gelu_tanh"),
        ("giantopt", 16, (256, 384), "gelu_tanh"),
    )
    for pixels in sizes
}


def section(name: str) -> dict:
    """The config section of an image tower by its name in timm, which tells its image size too.

    Raises:
      ValueError: it is not one of SigLIP's.
    """
    if name not in ACTIVATIONS:
        raise ValueError(
            f"vision_cfg has timm_model_name={name!r}; of timm's towers those of SigLIP are read: "
            f"{', '.join(ACTIVATIONS)}."
        )
    size, patch_size, image_size = _NAME.fullmatch(name).groups()
    patch_size, image_size = int(patch_size), int(image_size)
    width, depth, heads, mlp_dim = SIZES[size]
    return {
        "name": "vit",
        "image_size": image_size,
        "patch_size": patch_size,
        "drop_edge": image_size % patch_size > 0,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_dim": mlp_dim,
        "activation": ACTIVATIONS[name],
        "ln_eps": 1e-6,
        "pool": "map",
        "pre_norm": False,
        "patch_bias": True,
    }


def name_of(tower) -> str:
    """The name of the timm tower that an image tower is.

    Raises:
      ValueError: there is none.
    """
    sizes = (tower.width, tower.depth, tower.heads, tower.mlp_dim or 4 * tower.width)
    size = next((size for size, its in SIZES.items() if its == sizes), None)
    name = f"vit_{size}_patch{tower.patch_size}_siglip_{tower.image_size}"
    if name not in ACTIVATIONS:
        raise ValueError(
            f"timm has no SigLIP tower of width {tower.width}, {tower.depth} layers, "
            f"{tower.heads} heads, patches of {tower.patch_size} and {tower.image_size} pixels; "
            f"it has {', '.join(ACTIVATIONS)}."
        )
    if ACTIVATIONS[name] != tower.activation:
        raise ValueError(
            f"timm's {name} has the activation {ACTIVATIONS[name]!r}, not {tower.activation!r}. "
            "(Most of its SigLIP towers have the exact GELU, though all were trained with tanh.)"
        )
    return name


def entries(tower, prefix: str = "visual.trunk.") -> list[Entry]:
    """The entries of a SigLIP image tower."""
    p = prefix

    def layer(i):
        ours, their = "image/transformer/layers", f"{p}blocks.{i}"
        return [
            *norm(f"{ours}/ln_1", f"{their}.norm1", i),
            *packed_heads(
                f"{ours}/attn",
                f"{their}.attn.qkv.weight",
                f"{their}.attn.qkv.bias",
                ("query", "key", "value"),
                i,
            ),
            *linear(f"{ours}/attn/out", f"{their}.attn.proj", i, form="from_heads"),
            *norm(f"{ours}/ln_2", f"{their}.norm2", i),
            *linear(f"{ours}/mlp/fc1", f"{their}.mlp.fc1", i),
            *linear(f"{ours}/mlp/fc2", f"{their}.mlp.fc2", i),
        ]

    return [
        Entry("image/patch_embedding/kernel", f"{p}patch_embed.proj.weight", "conv"),
        Entry("image/patch_embedding/bias", f"{p}patch_embed.proj.bias"),
        Entry("image/positional_embedding", f"{p}pos_embed", "row"),
        *repeated(tower.depth, layer),
        *norm("image/ln_post", f"{p}norm"),
        Entry("image/pool/probe", f"{p}attn_pool.latent"),
        *linear("image/pool/attn/query", f"{p}attn_pool.q"),
        *packed_heads(
            "image/pool/attn",
            f"{p}attn_pool.kv.weight",
            f"{p}attn_pool.kv.bias",
            ("key", "value"),
        ),
        *linear("image/pool/attn/out", f"{p}attn_pool.proj", form="from_heads"),
        *norm("image/pool/ln", f"{p}attn_pool.norm"),
        *linear("image/pool/mlp/fc1", f"{p}attn_pool.mlp.fc1"),
        *linear("image/pool/mlp/fc2", f"{p}attn_pool.mlp.fc2"),
    ]
