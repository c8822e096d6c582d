"""OpenCLIP's names of what CoCa has beside its towers: the pool of queries and the decoder."""

from collections.abc import Mapping

from vlrep_jax.weights.layout import only, positive
from vlrep_jax.weights.mapping import (
    Entry,
    attention,
    block,
    linear,
    norm,
    packed_heads,
    repeated,
)


def pool_entries(tower, key: str) -> list[Entry]:
    """The attentional pooler of an image tower."""
    path, features = "image/pool", tower.embed_dim or tower.width
    found = [
        Entry(f"{path}/query", f"{key}.query"),
        *norm(f"{path}/ln_q", f"{key}.ln_q"),
        *norm(f"{path}/ln_k", f"{key}.ln_k"),
    ]
    if features == tower.width:
        return found + attention(f"{path}/attn", f"{key}.attn")
    # PyTorch packs the three matrices only where they have one width; the biases always.
    names = ("query", "key", "value")
    packed = packed_heads(f"{path}/attn", "", f"{key}.attn.in_proj_bias", names)
    found += [entry for entry in packed if entry.path.endswith("/bias")]
    for name in names:
        matrix = f"{key}.attn.{name[0]}_proj_weight"
        found.append(Entry(f"{path}/attn/{name}/kernel", matrix, "linear"))
    return found + linear(f"{path}/attn/out", f"{key}.attn.out_proj", form="from_heads")


def decoder_entries(decoder, key: str = "text_decoder") -> list[Entry]:
    """The multimodal decoder: layers of the text alone alternate with such that see the image."""

    def layer(i):
        cross = f"{key}.cross_attn.{i}"
        return [
            *block("decoder/layers/self", f"{key}.resblocks.{i}", i),
            *block("decoder/layers/cross", cross, i),
            *norm("decoder/layers/cross/ln_context", f"{cross}.ln_1_kv", i),
        ]

    return [
        *repeated(decoder.depth, layer),
        *norm("decoder/ln_final", f"{key}.ln_final"),
        Entry("decoder/head/kernel", f"{key}.text_projection"),
    ]


def decoder_section(config: Mapping, text: Mapping) -> dict:
    """The config section of a decoder from OpenCLIP's multimodal_cfg.

    Raises:
      ValueError: an option that is not known here.
    """
    only(config, "multimodal_cfg", {"ls_init_value": None, "mlp_ratio": 4, "dim_head": 64})
    return {
        "name": "caption_decoder",
        "vocab_size": text["vocab_size"],
        "width": positive({"width": 512} | config, "width"),
        "depth": positive({"layers": 12} | config, "layers"),
        "heads": positive({"heads": 8} | config, "heads"),
        "activation": text["activation"],
    }


def decoder_config(model) -> dict:
    """OpenCLIP's multimodal_cfg of a CoCa.

    Raises:
      ValueError: it cannot express the decoder.
    """
    decoder = model.decoder
    if decoder.mlp_dim not in (None, 4 * decoder.width) or decoder.ln_eps != 1e-5:
        raise ValueError("OpenCLIP's decoder has an MLP of 4 times its width and ln_eps=1e-5.")
    if decoder.activation != model.text.activation or decoder.vocab_size != model.text.vocab_size:
        raise ValueError("OpenCLIP's decoder has the text tower's activation and vocabulary.")
    return {
        "context_length": model.text.context_length,
        "vocab_size": decoder.vocab_size,
        "width": decoder.width,
        "heads": decoder.heads,
        "layers": decoder.depth,
        "attn_pooler_heads": model.image.pool_heads,
    }
