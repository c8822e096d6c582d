"""A byte-level BPE of one's own: trained here on the captions of a data set."""

import json
from collections.abc import Iterable

import ftfy
import tokenizers as hf

from vlrep_jax.data.tokenizers.base import FastTokenizer
from vlrep_jax.data.tokenizers.hf_models import fast_files


class BpeTokenizer(FastTokenizer):
    """A byte-level BPE trained on given texts by `train_bpe`; lower-cased, padded with 0.

    The end token has the largest id, so that pooling at the argmax of ids finds it.
    """

    kind = "bpe"

    def __init__(self, tokenizer_json):
        model = hf.Tokenizer.from_str(tokenizer_json)
        # 0 pads, so the model's ids move up by one and the end token comes after them all.
        end = model.get_vocab_size() + 1
        super().__init__(
            model,
            pad_id=0,
            eos_id=end,
            offset=1,
            vocab_size=end + 1,
            clean="whitespace",
            lower_case=True,
        )

    def clean(self, text):
        return super().clean(ftfy.fix_text(text))

    def _options(self):
        return {"tokenizer_json": self._model.to_str()}

    def huggingface_files(self):
        saved = json.loads(self._model.to_str())
        moved = {token: number + 1 for token, number in saved["model"]["vocab"].items()}
        saved["model"]["vocab"] = moved | {"<|pad|>": self.pad_id, "<|endoftext|>": self.eos_id}
        model = hf.Tokenizer.from_str(json.dumps(saved))
        special = {"bos": None, "eos": "<|endoftext|>", "pad": "<|pad|>"}
        return fast_files(model, **special, clean="repair", lower_case=True)


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Trains a BpeTokenizer; the same texts in the same order give the same one.

    Args:
        texts: what it shall encode well.
        vocab_size: ids at most, padding and end token included; few texts give fewer.

    Raises:
        ValueError: vocab_size is below 258, one id a byte and two special ones.
    """
    if vocab_size < 258:
        raise ValueError(f"vocab_size={vocab_size} must be at least 258 (256 bytes, pad, end).")
    model = hf.Tokenizer(hf.models.BPE())
    model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
    model.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator((" ".join(ftfy.fix_text(t).split()).lower() for t in texts), trainer)
    return BpeTokenizer(model.to_str())
