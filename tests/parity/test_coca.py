"""CoCa beside open_clip's class: embeddings, caption logits, loss, gradients, and captions."""

from functools import cache, partial

import jax
import numpy as np
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.loss import CoCaLoss

from vlrep_jax import models
from vlrep_jax.losses import captioning, softmax
from vlrep_jax.objectives import captioned

# Their decoder takes no context of another width than its own, so all but the image's are one.
DEPTH, WIDTH, HEADS = 2, 16, 4
IMAGE = {"image_size": 16, "patch_size": 8, "width": 24, "depth": DEPTH, "heads": 3}
LAYERS = {"vocab_size": 30, "width": WIDTH, "heads": HEADS, "depth": DEPTH}
START, END = 28, 29
TOKENS = np.array(
    [[28, 4, 5, 29, 0, 0, 0], [28, 1, 2, 3, 4, 5, 29], [28, 29, 0, 0, 0, 0, 0]], np.int32
)


@cache
def theirs():
    torch.manual_seed(0)
    vision = {
        "image_size": 16,
        "patch_size": 8,
        "width": 24,
        "head_width": 8,
        "layers": DEPTH,
        "attentional_pool": True,
        "attn_pooler_queries": 5,
        "attn_pooler_heads": 4,
        "output_tokens": True,
    }
    text = {"context_length": 7, "vocab_size": 30, "width": WIDTH, "heads": HEADS, "layers": DEPTH}
    of_text = text | {"embed_cls": True, "output_tokens": True}
    model = CoCa(WIDTH, text, of_text, vision)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                around = 1.0 if "ln" in name and name.endswith("weight") else 0.0
                parameter.normal_(around, 0.2)
    return model.eval()


@cache
def ours():
    pools = {"pool": "queries", "queries": 5, "pool_heads": 4}, {"pool": "cls"}
    return models.create(
        "coca",
        image={"name": "vit", **IMAGE, "embed_dim": WIDTH, **pools[0]},
        text={
            "name": "text_transformer",
            **LAYERS,
            "context_length": 7,
            "embed_dim": WIDTH,
            **pools[1],
        },
        decoder={"name": "caption_decoder", **LAYERS},
    )


def linear(of, name):
    return {"kernel": of(f"{name}.weight").T, "bias": of(f"{name}.bias")}


def norm(of, name):
    return {"scale": of(f"{name}.weight"), "bias": of(f"{name}.bias")}


def attention(of, name, heads, separate=False):
    if separate:
        kernels = [of(f"{name}.{x}_proj_weight") for x in "qkv"]
    else:
        kernels = np.split(of(f"{name}.in_proj_weight"), 3)
    biases = np.split(of(f"{name}.in_proj_bias"), 3)
    parts = {
        part: {
            "kernel": kernel.T.reshape(kernel.shape[1], heads, -1),
            "bias": bias.reshape(heads, -1),
        }
        for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
    }
    out = of(f"{name}.out_proj.weight").T
    out = {"kernel": out.reshape(heads, -1, out.shape[1]), "bias": of(f"{name}.out_proj.bias")}
    return {**parts, "out": out}


def block(of, name, heads, cross=False):
    mlp = {"fc1": linear(of, f"{name}.mlp.c_fc"), "fc2": linear(of, f"{name}.mlp.c_proj")}
    context = {"ln_context": norm(of, f"{name}.ln_1_kv")} if cross else {}
    return {
        "ln_1": norm(of, f"{name}.ln_1"),
        "ln_2": norm(of, f"{name}.ln_2"),
        "attn": attention(of, f"{name}.attn", heads),
        "mlp": mlp,
        **context,
    }


def stacked(of, name, heads, **options):
    layers = [block(of, f"{name}.{i}", heads, **options) for i in range(DEPTH)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)


def tree_of(tensors):
    """Our tree of their named tensors."""

    def of(name):
        return tensors[name].detach().numpy().copy()

    return {
        "logit_scale": of("logit_scale"),
        "image": {
            "patch_embedding": {"kernel": of("visual.conv1.weight").transpose(2, 3, 1, 0)},
            "class_embedding": of("visual.class_embedding"),
            "positional_embedding": of("visual.positional_embedding"),
            "ln_pre": norm(of, "visual.ln_pre"),
            "transformer": {"layers": stacked(of, "visual.transformer.resblocks", 3)},
            "pool": {
                "query": of("visual.attn_pool.query"),
                "ln_q": norm(of, "visual.attn_pool.ln_q"),
                "ln_k": norm(of, "visual.attn_pool.ln_k"),
                "attn": attention(of, "visual.attn_pool.attn", 4, separate=True),
            },
            "ln_post": norm(of, "visual.ln_post"),
            "projection": {"kernel": of("visual.proj")},
        },
        "text": {
            "token_embedding": {"embedding": of("text.token_embedding.weight")},
            "class_embedding": of("text.cls_emb"),
            "positional_embedding": of("text.positional_embedding"),
            "transformer": {"layers": stacked(of, "text.transformer.resblocks", 4)},
            "ln_final": norm(of, "text.ln_final"),
            "projection": {"kernel": of("text.text_projection")},
        },
        "decoder": {
            "layers": {
                "self": stacked(of, "text_decoder.resblocks", 4),
                "cross": stacked(of, "text_decoder.cross_attn", 4, cross=True),
            },
            "ln_final": norm(of, "text_decoder.ln_final"),
            "head": {"kernel": of("text_decoder.text_projection")},
        },
    }


@cache
def images():
    return np.float32(np.random.default_rng(0).normal(size=(3, 16, 16, 3)))


def their_inputs():
    pixels = torch.from_numpy(images().transpose(0, 3, 1, 2).copy())
    return pixels, torch.from_numpy(TOKENS.astype(np.int64))


def test_their_tree_is_ours():
    init = partial(ours().init, jax.random.key(0), images(), TOKENS)
    wanted = jax.tree.map(np.shape, jax.eval_shape(init)["params"])
    assert jax.tree.map(np.shape, tree_of(theirs().state_dict())) == wanted


def test_embeddings_and_caption_logits_are_theirs():
    found = jax.jit(ours().apply)({"params": tree_of(theirs().state_dict())}, images(), TOKENS)
    with torch.no_grad():
        expected = theirs()(*their_inputs())
    for name, wanted in (
        ("image", "image_features"),
        ("text", "text_features"),
        ("logits", "logits"),
        ("scale", "logit_scale"),
    ):
        wanted = expected[wanted].numpy()
        atol = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_loss_and_every_gradient_are_theirs(remat):
    model = theirs()
    model.zero_grad()
    out = model(*their_inputs())
    contrastive, caption = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(
        out["image_features"],
        out["text_features"],
        out["logits"],
        out["labels"],
        model.logit_scale.exp(),
    )
    (contrastive + caption).backward()
    wanted = tree_of({name: p.grad for name, p in model.named_parameters()})
    objective = captioned(
        ours().clone(decoder=ours().decoder.clone(remat=remat)), softmax, captioning, weight=2.0
    )
    batch = {"image": images(), "text": TOKENS}
    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, metrics), found = gradient(tree_of(model.state_dict()), batch, jax.random.key(0))
    np.testing.assert_allclose(value, (contrastive + caption).item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["contrastive"], contrastive.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["captioning"], caption.item() / 2, rtol=1e-5)
    for (path, leaf), expected in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        # A bias of keys has no gradient but rounding: attention does not change with it.
        atol = 1e-4 * max(np.abs(expected).max(), 1e-2)
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=atol, err_msg=name)


def test_greedy_captions_are_theirs():
    params = tree_of(theirs().state_dict())
    options = {"start_id": START, "end_id": END}
    several = np.float32(np.random.default_rng(1).normal(size=(24, 16, 16, 3)))
    found = jax.jit(partial(models.generate, ours(), **options))(params, several)
    # Their own loop needs a transformers before 5; this is its way of growing the text.
    pixels = torch.from_numpy(several.transpose(0, 3, 1, 2).copy())
    text, done = torch.full((24, 1), START), torch.zeros(24, dtype=torch.bool)
    with torch.no_grad():
        while text.shape[1] < 7:
            logits = theirs()(pixels, text, output_labels=False)["logits"][:, -1]
            chosen = torch.where(done, 0, logits.argmax(dim=-1))
            text, done = torch.cat([text, chosen[:, None]], dim=1), done | (chosen == END)
    np.testing.assert_array_equal(found, text.numpy())
    assert len({tuple(row) for row in text.tolist()}) > 1
