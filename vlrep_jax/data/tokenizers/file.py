"""Any Hugging Face tokenizer.json."""

from pathlib import Path

import tokenizers as hf

from vlrep_jax.data.tokenizers.base import FastTokenizer
from vlrep_jax.data.tokenizers.hf_models import fast_files


class FileTokenizer(FastTokenizer):
    """Any Hugging Face `tokenizer.json`, such as SigLIP 2's.

    A special token spelt in a text is plain text to a BPE; a unigram model, which holds it as a
    piece, leaves it out.

    Args:
        path: the file; or give its content as `tokenizer_json`.
        lower_case: whether texts are lower-cased after cleaning.
        clean: of `cleaning.CLEANERS`, what is done to texts before the file's own normalizer.
        pad_id, eos_id: ids of its padding and end token (SigLIP: 1 and 1).
        bos_id: id of its start token; None (SigLIP) for none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no `tokenizer.json`, an id is outside its vocabulary, or an unknown
            `clean`.
    """

    kind = "file"

    def __init__(
        self,
        path=None,
        *,
        pad_id,
        eos_id,
        bos_id=None,
        lower_case=False,
        clean="whitespace",
        tokenizer_json=None,
    ):
        if tokenizer_json is None:
            if not path:
                raise ValueError(
                    "The path of the tokenizer is empty; name a Hugging Face tokenizer.json, for "
                    "example --config.tokenizer.path=FILE."
                )
            tokenizer_json = Path(path).read_text(encoding="utf-8")
        try:
            model = hf.Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a Hugging Face tokenizer.json: {error}") from error
        model.no_padding()
        model.no_truncation()
        model.encode_special_tokens = True
        size = model.get_vocab_size(with_added_tokens=True)
        for name, value in (("pad_id", pad_id), ("eos_id", eos_id), ("bos_id", bos_id)):
            if value is not None and not 0 <= value < size:
                raise ValueError(f"{name}={value} is outside the vocabulary of {size} in {path}.")
        super().__init__(
            model,
            pad_id=pad_id,
            eos_id=eos_id,
            bos_id=bos_id,
            vocab_size=size,
            clean=clean,
            lower_case=lower_case,
        )

    def _encode(self, texts):
        special = {self.pad_id, self.eos_id, self.bos_id}
        return [
            ids if special.isdisjoint(ids) else [i for i in ids if i not in special]
            for ids in super()._encode(texts)
        ]

    def __setstate__(self, state):
        vars(self).update(state)
        self._model.encode_special_tokens = True  # the library does not pickle it

    def _options(self):
        options = {"tokenizer_json": self._model.to_str(), "lower_case": self._lower_case}
        if self._clean != "whitespace":  # as ever: fingerprints of older runs stay
            options["clean"] = self._clean
        return options | {"pad_id": self.pad_id, "eos_id": self.eos_id, "bos_id": self.bos_id}

    def huggingface_files(self):
        ids = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id}
        tokens = {
            name: None if value is None else self._model.id_to_token(value)
            for name, value in ids.items()
        }
        return fast_files(self._model, **tokens, clean=self._clean, lower_case=self._lower_case)
