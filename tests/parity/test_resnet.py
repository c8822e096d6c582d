"""CLIP's ResNet beside open_clip's class: features, gradients, batch norm in training."""

from functools import cache

import jax
import numpy as np
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from vlrep_jax.models.batch_norm import RUNNING
from vlrep_jax.models.resnet import ResNet

SIZE, WIDTH, DEPTH, HEADS, OUT = 64, 8, (2, 1, 2, 1), 4, 6
BATCH_NORM = {
    "weight": "scale",
    "bias": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
}
POOL = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "c_proj": "out"}


def path_of(name):
    """Our path of a parameter of theirs, or None."""
    *parts, leaf = name.split(".")
    if leaf == "num_batches_tracked":
        return None
    if parts[0] == "attnpool":
        if len(parts) == 1:
            return ("pool", leaf)
        return ("pool", POOL[parts[1]], {"weight": "kernel"}.get(leaf, leaf))
    if parts[0].startswith("layer"):
        block = (f"stage_{parts[0][-1]}", f"block_{int(parts[1]) + 1}")
        module = ".".join(parts[2:])
        downsample = {"downsample.0": "downsample_conv", "downsample.1": "downsample_bn"}
        module = downsample.get(module, f"{module[:-1]}_{module[-1]}")
    else:
        block, module = ("stem",), f"{parts[0][:-1]}_{parts[0][-1]}"
    return (*block, module, BATCH_NORM[leaf] if "bn" in module else "kernel")


def array_of(path, tensor):
    """Their array in our layout."""
    x = tensor.detach().numpy().copy()
    if path[0] == "pool" and path[-1] == "kernel":
        return x.T.reshape(HEADS, -1, OUT) if path[1] == "out" else x.T.reshape(len(x), HEADS, -1)
    if path[0] == "pool" and path[-1] == "bias" and path[1] != "out":
        return x.reshape(HEADS, -1)
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x


def tree_of(tensors):
    """Our tree of their named tensors."""
    tree = {}
    for name, tensor in tensors.items():
        path = path_of(name)
        if path is None or tensor is None:
            continue
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = array_of(path, tensor)
    return tree


@cache
def theirs():
    """Their model with every parameter and statistic drawn."""
    torch.manual_seed(0)
    model = ModifiedResNet(DEPTH, OUT, HEADS, SIZE, WIDTH)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "bn" in name or "downsample.1" in name:
                if name.endswith(("weight", "running_var")):
                    tensor.uniform_(0.5, 1.5)
                elif not name.endswith("tracked"):
                    tensor.normal_(0, 0.3)
            elif name.endswith("bias"):
                tensor.normal_(0, 0.3)
    return model


@cache
def inputs():
    rng = np.random.default_rng(0)
    images, by_feature = rng.normal(size=(4, SIZE, SIZE, 3)), rng.normal(size=(4, OUT))
    return np.float32(images), np.float32(by_feature)


def run_theirs(train):
    """(features, gradients, running statistics after it) as trees of ours."""
    model, (images, by_feature) = theirs(), inputs()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train(train).zero_grad()
    features = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    (features * torch.from_numpy(by_feature)).sum().backward()
    gradients = tree_of({name: p.grad for name, p in model.named_parameters()})
    running = {n: t.clone() for n, t in model.state_dict().items() if "running" in n}
    model.load_state_dict(before)
    return features.detach().numpy(), gradients, tree_of(running)


def run_ours(train, **options):
    images, by_feature = inputs()
    model = ResNet(SIZE, WIDTH, DEPTH, HEADS, OUT, **options)

    def total(params):
        features, updated = model.apply({"params": params}, images, train=train, mutable=[RUNNING])
        return (features * by_feature).sum(), (features, updated.get(RUNNING, {}))

    gradient = jax.jit(jax.grad(total, has_aux=True))
    gradients, (features, running) = gradient(tree_of(theirs().state_dict()))
    return features, gradients, running


def close(found, wanted, tolerance):
    """Every leaf, relative to its largest entry."""
    leaves, wanted = jax.tree.leaves_with_path(found), dict(jax.tree.leaves_with_path(wanted))
    for path, leaf in leaves:
        if path in wanted:
            atol = tolerance * max(np.abs(wanted[path]).max(), 0.01)
            name = jax.tree_util.keystr(path)
            np.testing.assert_allclose(leaf, wanted[path], rtol=0, atol=atol, err_msg=name)
    assert wanted.keys() <= {path for path, _ in leaves}


@pytest.mark.parametrize("train", [False, True])
def test_features_gradients_and_running_statistics_are_theirs(train):
    features, gradients, running = run_ours(train)
    expected, their_gradients, their_running = run_theirs(train)
    close(features, expected, 1e-5)
    # A bias of keys has no gradient but rounding: attention does not change with it.
    close(gradients, their_gradients, 1e-4)
    if train:
        close(running, their_running, 1e-5)
    else:
        assert not running


@pytest.mark.parametrize("remat", ["none", "full"])
def test_frozen_batch_norm_trains_as_theirs_evaluates(remat):
    features, gradients, running = run_ours(True, batch_norm="frozen", remat=remat)
    expected, their_gradients, _ = run_theirs(False)
    close(features, expected, 1e-5)
    close(gradients, their_gradients, 1e-4)
    assert not running


def test_rematerialisation_keeps_training_as_it_is():
    found, plain = run_ours(True, remat="full"), run_ours(True)
    close(found, plain, 1e-4)  # of the same products, fused otherwise


def test_running_statistics_have_no_gradient():
    _, gradients, _ = run_ours(True)
    paths = jax.tree.leaves_with_path(gradients)
    running = [leaf for path, leaf in paths if "running" in jax.tree_util.keystr(path)]
    assert len(running) == 2 * (3 + 3 * sum(DEPTH) + 4)
    assert not any(np.abs(leaf).any() for leaf in running)
