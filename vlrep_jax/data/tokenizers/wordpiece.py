"""BERT's WordPiece: the text side of CLIPA."""

import json
from pathlib import Path

import tokenizers as hf

from vlrep_jax.data.tokenizers.base import FastTokenizer
from vlrep_jax.data.tokenizers.hf_models import config_files, with_special

_PAD, _START, _END, _UNKNOWN, _MASK = "[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"


class WordPieceTokenizer(FastTokenizer):
    """BERT's WordPiece with [CLS] before a text and [SEP] behind it, from a vocab.txt.

    The ids are `transformers.BertTokenizer`'s with clean='none', and OpenCLIP's for CLIPA as by
    default: there [SEP] became padding.

    Args:
        path: the file, a token a line; or give the lines as `vocabulary`.
        lower_case: BERT's own, which drops accents too ('uncased' models).
        keep_sep: whether a text ends in [SEP]; otherwise in the first [PAD].
        clean: of `cleaning.CLEANERS`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a special token is missing, or an unknown `clean`.
    """

    kind = "wordpiece"

    def __init__(
        self, path=None, *, lower_case=True, keep_sep=False, clean="repair", vocabulary=None
    ):
        if vocabulary is None:
            if not path:
                raise ValueError("The path of the tokenizer is empty; name a vocab.txt.")
            vocabulary = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        ids = {token: number for number, token in enumerate(vocabulary)}
        missing = [token for token in (_PAD, _START, _END, _UNKNOWN) if token not in ids]
        if missing:
            raise ValueError(f"{path} is not the vocab.txt of a BERT: it lacks {missing}.")
        model = hf.Tokenizer(hf.models.WordPiece(ids, unk_token=_UNKNOWN))
        model.normalizer = hf.normalizers.BertNormalizer(lowercase=lower_case)
        model.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
        model.decoder = hf.decoders.WordPiece()
        self._vocabulary, self._bert_lower_case, self._keep_sep = vocabulary, lower_case, keep_sep
        super().__init__(
            model,
            pad_id=ids[_PAD],
            eos_id=ids[_END if keep_sep else _PAD],
            bos_id=ids[_START],
            vocab_size=len(vocabulary),
            clean=clean,
            lower_case=False,
        )

    def _options(self):
        return {
            "vocabulary": self._vocabulary,
            "lower_case": self._bert_lower_case,
            "keep_sep": self._keep_sep,
            "clean": self._clean,
        }

    def huggingface_files(self):
        model = hf.Tokenizer.from_str(self._model.to_str())
        model = with_special(model, bos=_START, eos=_END, pad=_PAD)
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": self._bert_lower_case}
        special = {"pad_token": _PAD, "cls_token": _START, "sep_token": _END, "unk_token": _UNKNOWN}
        if _MASK in self._vocabulary:
            special["mask_token"] = _MASK
        return {
            "vocab.txt": "\n".join(self._vocabulary) + "\n",
            "tokenizer.json": json.loads(model.to_str()),
        } | config_files(config, special)

    def openclip_options(self):
        options = super().openclip_options()
        return options if self._keep_sep else options | {"strip_sep_token": True}
