"""SentencePiece models: SigLIP's, SigLIP 2's (Gemma's), and big_vision's."""

import base64
from pathlib import Path

import sentencepiece

from vlrep_jax.data.tokenizers.base import Tokenizer
from vlrep_jax.data.tokenizers.hf_models import config_files


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, such as `spiece.model` of SigLIP.

    Which options give whose ids:

    * SigLIP as `transformers.SiglipTokenizer` has it: as by default.
    * SigLIP as OpenCLIP has it: clean='canonicalize'.
    * SigLIP as big_vision trained it (c4_en, eos='sticky'): clean='none', lower_case=True.
    * SigLIP 2 (Gemma's model): pad_id=0, clean='none', lower_case=True.

    Args:
        path: the file; or give its bytes in base64 as `model`.
        pad_id, eos_id: ids of its padding and end token.
        bos_id: id of its start token; None for none.
        clean: of `cleaning.CLEANERS`.
        lower_case: whether texts are lower-cased after cleaning.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no SentencePiece model, an id is outside its vocabulary, or an unknown
            `clean`.
    """

    kind = "sentencepiece"

    def __init__(
        self,
        path=None,
        *,
        pad_id=1,
        eos_id=1,
        bos_id=None,
        clean="siglip",
        lower_case=False,
        model=None,
    ):
        if model is None:
            if not path:
                raise ValueError("The path of the tokenizer is empty; name a SentencePiece model.")
            data = Path(path).read_bytes()
        else:
            data = base64.b64decode(model)
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(data)
            size = self._pieces.get_piece_size()
        except Exception as error:  # the library raises what it likes
            raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
        ids = {"pad_id": pad_id, "eos_id": eos_id, "bos_id": bos_id}
        for name, value in ids.items():
            if value is not None and not 0 <= value < size:
                raise ValueError(f"{name}={value} is outside the vocabulary of {size} in {path}.")
        super().__init__(**ids, vocab_size=size, clean=clean, lower_case=lower_case)
        # Control pieces never come out of a text; a special token of another type is left out.
        given = {value for value in ids.values() if value is not None}
        self._left_out = {value for value in given if not self._pieces.is_control(value)}

    def _encode(self, texts):
        bodies = self._pieces.encode(texts)
        if self._left_out:
            bodies = [[i for i in ids if i not in self._left_out] for ids in bodies]
        return bodies

    def _decode(self, ids):
        return self._pieces.decode([i for i in ids if 0 <= i < self.vocab_size])

    def _options(self):
        model = base64.b64encode(self._pieces.serialized_model_proto()).decode()
        ids = {"pad_id": self.pad_id, "eos_id": self.eos_id, "bos_id": self.bos_id}
        return {"model": model, "clean": self._clean, "lower_case": self._lower_case} | ids

    def huggingface_files(self):
        if self._clean not in ("siglip", "canonicalize") or self.bos_id is not None:
            raise ValueError(
                f"transformers.SiglipTokenizer drops punctuation and adds no start token; this one "
                f"has clean={self._clean!r}, bos_id={self.bos_id}. A tokenizer.json can say "
                "it: make this tokenizer from one ('file')."
            )
        piece = self._pieces.id_to_piece
        tokens = {"eos_token": piece(self.eos_id), "pad_token": piece(self.pad_id)}
        tokens["unk_token"] = piece(self._pieces.unk_id())
        # Its class puts this before a text, and would else take the default for it.
        config = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True}
        model = {"spiece.model": self._pieces.serialized_model_proto()}
        return model | config_files(config, tokens)
