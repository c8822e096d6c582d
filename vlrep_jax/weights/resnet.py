"""OpenAI's names of its ModifiedResNet, which are OpenCLIP's too."""

from collections.abc import Mapping

from vlrep_jax.weights.mapping import Entry, linear, norm

# Counters of PyTorch's batch norm that say nothing about a model.
COUNTER = ".num_batches_tracked"


def entries(tower, prefix: str = "visual") -> list[Entry]:
    """The entries of a ResNet image tower."""
    found = []
    for i in (1, 2, 3):
        found += _conv_norm("image/stem", prefix, str(i))
    for stage, depth in enumerate(tower.depth, 1):
        for block in range(1, depth + 1):
            ours, their = f"image/stage_{stage}/block_{block}", f"{prefix}.layer{stage}.{block - 1}"
            for i in (1, 2, 3):
                found += _conv_norm(ours, their, str(i))
            if block == 1:
                down = f"{their}.downsample"
                found.append(Entry(f"{ours}/downsample_conv/kernel", f"{down}.0.weight", "conv"))
                found += _batch_norm(f"{ours}/downsample_bn", f"{down}.1")
    pool = f"{prefix}.attnpool"
    found.append(Entry("image/pool/positional_embedding", f"{pool}.positional_embedding"))
    for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
        found += linear(f"image/pool/{name}", f"{pool}.{short}_proj")
    return found + linear("image/pool/out", f"{pool}.c_proj", form="from_heads")


def _conv_norm(ours, their, number):
    conv = Entry(f"{ours}/conv_{number}/kernel", f"{their}.conv{number}.weight", "conv")
    return [conv, *_batch_norm(f"{ours}/bn_{number}", f"{their}.bn{number}")]


def _batch_norm(path, key):
    running = [Entry(f"{path}/{name}", f"{key}.{name}") for name in ("running_mean", "running_var")]
    return norm(path, key) + running


def section(shapes: Mapping[str, tuple[int, ...]]) -> dict:
    """The config section of the ResNet whose tensors have these shapes."""
    width = shapes["visual.layer1.0.conv1.weight"][0]
    positions, _ = shapes["visual.attnpool.positional_embedding"]
    names = [name.split(".") for name in shapes if name.startswith("visual.layer")]
    depth = tuple(
        1 + max(int(name[2]) for name in names if name[1] == f"layer{stage}")
        for stage in (1, 2, 3, 4)
    )
    return {
        "name": "resnet",
        "image_size": 32 * round((positions - 1) ** 0.5),
        "width": width,
        "depth": depth,
        "heads": width * 32 // 64,
        "embed_dim": shapes["visual.attnpool.c_proj.weight"][0],
    }
