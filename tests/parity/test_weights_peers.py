"""Published models in their own classes beside ours: values, loss, gradients, and back again."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import open_clip
import peers
import pytest
import torch
from transformers import CLIPModel, SiglipModel

from vlrep_jax import losses, models, weights
from vlrep_jax.weights import huggingface, openclip
from vlrep_jax.weights.mapping import theirs
from vlrep_jax.weights.reading import by_path

jax.config.update("jax_default_matmul_precision", "highest")


def pairs(model, rows=3):
    """(pixels, ids) as a model takes them; every text ends in its largest id, one is not padded."""
    image_size, length = models.input_sizes(model)
    # Of RN50's millions of ReLUs one may be so near to zero that rounding switches it: gradients
    # then differ from float64's by 1e-3. Of seeds 0, 5 and 6 it happens with 0.
    rng = np.random.default_rng(6)
    images = rng.standard_normal((rows, image_size, image_size, 3), np.float32)
    largest = models.vocab_size(model) - 1
    tokens = rng.integers(1, largest, (rows, length))
    for row in range(rows):
        end = length - 1 - row
        tokens[row, end] = largest
        tokens[row, end + 1 :] = 0
    if getattr(model.text, "eos_id", largest) < largest:
        tokens[:, 5] = model.text.eos_id
    return images, tokens


def as_torch(images, tokens, dtype=torch.float32):
    return torch.tensor(images, dtype=dtype).permute(0, 3, 1, 2), torch.tensor(tokens)


def forward(peer, images, tokens):
    """(image, text, logits of a decoder or None) of a model of either peer."""
    pixels, ids = as_torch(images, tokens, peer.logit_scale.dtype)
    if hasattr(peer, "vision_model"):
        out = peer(input_ids=ids, pixel_values=pixels)
        return out.image_embeds, out.text_embeds, None
    out = peer(pixels, ids)
    if not isinstance(out, dict):
        out = {"image_features": out[0], "text_features": out[1]}
    return out["image_features"], out["text_features"], out.get("logits")


def their_loss(peer, image, text):
    """The contrastive loss of CLIP, or SigLIP's."""
    bias = getattr(peer, "logit_bias", None)
    logits = peer.logit_scale.exp() * image @ text.T
    if bias is None:
        labels = torch.arange(len(logits))
        cross = torch.nn.functional.cross_entropy
        return (cross(logits, labels) + cross(logits.T, labels)) / 2
    signs = 2 * torch.eye(len(logits)) - 1
    return -torch.nn.functional.logsigmoid(signs * (logits + bias)).sum() / len(logits)


def their_value(peer, image, text, caption):
    return their_loss(peer, image, text) + (0 if caption is None else caption.square().mean())


def assert_close(ours, expected, rtol):
    """Relative to the largest value: single ones near zero are rounding."""
    expected = expected.detach().numpy()
    atol = rtol * max(np.abs(expected).max(), 1e-12)
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=0, atol=atol)


def assert_same_numbers(loaded, peer, entries):
    """Embeddings, logits and loss to 1e-5, gradients of all parameters to 1e-4.

    The gradients of the peer are taken in float64: in float32 a ResNet's are off by up to 1e-4 in
    torch, more or less so from one processor to the next.
    """
    images, tokens = pairs(loaded.model)
    with torch.no_grad():
        image, text, caption = forward(peer, images, tokens)
    exact = copy.deepcopy(peer).double()
    their_value(exact, *forward(exact, images, tokens)).backward()

    @jax.jit
    def gradients(params):
        def loss(params):
            out = loaded.model.apply({"params": params}, images, tokens)
            form = losses.softmax if out.bias is None else losses.sigmoid
            value, _ = form(out.image, out.text, out.scale, out.bias)
            if caption is not None:
                value = value + jnp.square(out.logits).mean()
            return value, out

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, out), grads = gradients(loaded.params)
    assert_close(out.image, image, 1e-5)
    assert_close(out.text, text, 1e-5)
    assert_close(out.scale * out.image @ out.text.T, peer.logit_scale.exp() * image @ text.T, 1e-5)
    if caption is not None:
        assert_close(out.logits, caption, 1e-5)
    assert_close(value, their_value(peer, image, text, caption), 1e-5)
    largest = max(float(p.grad.abs().max()) for p in exact.parameters() if p.grad is not None)
    by_name = dict(exact.named_parameters())
    for key, gradient in theirs(entries, by_path(grads)):
        if key not in by_name:  # running statistics
            assert not gradient.any(), key
            continue
        wanted = by_name[key].grad
        wanted = torch.zeros_like(by_name[key]) if wanted is None else wanted
        # A gradient that is zero but for rounding is measured by the largest of all.
        atol = 1e-4 * max(float(wanted.abs().max()), 1e-3 * largest)
        np.testing.assert_allclose(gradient, wanted.numpy(), rtol=0, atol=atol, err_msg=key)


def assert_same_state(peer, other):
    """Bit-identical tensors of the same names."""
    one, two = peer.state_dict(), other.state_dict()
    assert one.keys() == two.keys()
    for key in one:
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(one[key], two[key]), key


@pytest.mark.parametrize("name", peers.OPEN_CLIP)
def test_open_clip_there_and_back(tmp_path, name):
    peer = peers.open_clip_model(name, tmp_path / "model")
    loaded = weights.load(tmp_path / "model")
    weights.save(tmp_path / "back", loaded, "openclip")
    again = open_clip.create_model(f"local-dir:{tmp_path / 'back'}").eval()
    assert_same_state(peer, again)
    images, tokens = pairs(loaded.model)
    for one, two in zip(forward(peer, images, tokens), forward(again, images, tokens), strict=True):
        assert one is two is None or torch.equal(one, two)
    assert_same_numbers(loaded, peer, openclip.entries(loaded.model, list(peer.state_dict())))


def test_a_scale_of_one_dimension(tmp_path):
    peer = peers.open_clip_model("ViT-B-32", tmp_path / "model", nonscalar_logit_scale=True)
    assert peer.logit_scale.shape == (1,)
    loaded = weights.load(tmp_path / "model")
    images, tokens = pairs(loaded.model)
    out = loaded.model.apply({"params": loaded.params}, images, tokens)
    assert_close(out.scale, peer.logit_scale.exp()[0], 1e-6)


@pytest.mark.parametrize("name", peers.HUGGING_FACE)
def test_hugging_face_there_and_back(tmp_path, name):
    peer = peers.hugging_face_model(name, tmp_path / "model")
    loaded = weights.load(tmp_path / "model")
    weights.save(tmp_path / "back", loaded, "huggingface")
    kind = SiglipModel if "siglip" in name else CLIPModel
    again = kind.from_pretrained(tmp_path / "back").eval()
    assert_same_state(peer, again)
    images, tokens = pairs(loaded.model)
    for one, two in zip(forward(peer, images, tokens), forward(again, images, tokens), strict=True):
        assert one is two is None or torch.equal(one, two)
    assert_same_numbers(loaded, peer, huggingface.entries(loaded.model))


@pytest.mark.parametrize("eos_id", [2, 199])
def test_any_ids_are_read_where_transformers_reads_them(tmp_path, eos_id):
    """Texts without an end token, with several, and configs from before it was looked up."""
    peer = peers.hugging_face_model("clip", tmp_path / "model")
    peer.config.text_config.eos_token_id = peer.text_model.eos_token_id = eos_id
    peer.config.save_pretrained(tmp_path / "model")
    loaded = weights.load(tmp_path / "model")
    tokens = np.random.default_rng(0).integers(0, 199, (4, 12))
    tokens[0, 3:5] = tokens[1, 2] = 199
    with torch.no_grad():
        out = [peer.get_text_features(torch.tensor(tokens))]
        weights.save(tmp_path / "back", loaded, "huggingface")
        again = CLIPModel.from_pretrained(tmp_path / "back").eval()
        out.append(again.get_text_features(torch.tensor(tokens)))
    one, two = (getattr(each, "pooler_output", each) for each in out)
    assert torch.equal(one, two)
    ours = loaded.model.apply({"params": loaded.params}, tokens, method="encode_text")
    assert_close(ours, torch.nn.functional.normalize(one, dim=-1), 1e-5)


def test_shards_hold_the_same_model(tmp_path):
    peer = peers.hugging_face_model("clip", tmp_path / "model")
    peer.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    one, two = weights.load(tmp_path / "model"), weights.load(tmp_path / "shards")
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


@pytest.mark.parametrize("form", ["state dict", "marked", "half", "torchscript", "checkpoint"])
def test_openai_archives(tmp_path, form):
    peer, path = peers.openai_model(), tmp_path / "model.pt"
    images, tokens = np.zeros((1, 32, 32, 3), np.float32), np.ones((1, 12), np.int64)
    state = peer.state_dict()
    if form == "torchscript":
        with torch.no_grad():
            traced = torch.jit.trace(
                peer, as_torch(images, tokens), strict=False, check_trace=False
            )
        traced.save(path)
    elif form == "marked":
        torch.save({**state, "input_resolution": torch.tensor(32)}, path)
    elif form == "half":
        half = {k: v.half() if v.ndim > 1 else v for k, v in state.items()}
        torch.save(half, path)
        peer.load_state_dict(half)  # in float32, with halves' values
    elif form == "checkpoint":
        nested = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
        torch.save(nested, path)
    else:
        torch.save(state, path)
    if form in ("state dict", "checkpoint"):
        with pytest.warns(UserWarning, match="does not say which activation"):
            loaded = weights.load(path)
    else:
        loaded = weights.load(path)
    weights.save(tmp_path / "back.pt", loaded, "openai")
    again = torch.load(tmp_path / "back.pt", weights_only=True)
    assert again.keys() == peer.state_dict().keys()
    assert all(torch.equal(again[key], value) for key, value in peer.state_dict().items())
    assert_same_numbers(loaded, peer, openclip.entries(loaded.model, list(again)))


def test_big_vision_files_as_open_clip_reads_them(tmp_path):
    """A SigLIP written as big_vision writes it: OpenCLIP's own converter gives the same tensors."""
    section = models.PRESETS["ViT-B-32-SigLIP2-256"]
    text = {"vocab_size": 200, "context_length": 12, "width": 64, "depth": 2, "heads": 2}
    text |= {"mlp_dim": 256, "embed_dim": 768}
    peer = peers.open_clip_model("ViT-B-32-SigLIP2-256", tmp_path / "model")
    loaded = weights.load(tmp_path / "model")
    assert loaded.config["model"]["image"]["width"] == section["image"]["width"]
    weights.save(tmp_path / "model.npz", loaded, "big_vision")
    other = peers.open_clip_model("ViT-B-32-SigLIP2-256", tmp_path / "other")
    peers.draw(other, seed=1)
    open_clip.load_checkpoint(other, str(tmp_path / "model.npz"))
    assert_same_state(peer, other)
    again = weights.load(tmp_path / "model.npz")
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50"])
def test_whole_models(tmp_path, name):
    peer = peers.open_clip_model(name, tmp_path / "model", whole=True)
    loaded = weights.load(tmp_path / "model")
    count = sum(leaf.size for path, leaf in by_path(loaded.params).items() if "running" not in path)
    assert count == sum(p.numel() for p in peer.parameters())
    assert_same_numbers(loaded, peer, openclip.entries(loaded.model, list(peer.state_dict())))
