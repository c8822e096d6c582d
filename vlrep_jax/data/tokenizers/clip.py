"""OpenAI CLIP's tokenizer, with its vocabulary."""

import functools
import gzip
from pathlib import Path

from vlrep_jax.data.tokenizers.base import FastTokenizer
from vlrep_jax.data.tokenizers.hf_models import clip_files, clip_model

_MERGES = Path(__file__).parents[1] / "clip_vocabulary" / "merges.txt.gz"
# OpenAI's pattern without its special tokens, which would let a caption end itself early.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class ClipTokenizer(FastTokenizer):
    """OpenAI CLIP's byte-level BPE: 49,408 ids, start 49406, end 49407, padded with 0.

    Texts are repaired by ftfy, HTML entities resolved and lower-cased, as CLIP was trained. The
    ids are those of `open_clip.SimpleTokenizer`, but for a text that spells `<start_of_text>`.
    """

    kind = "clip"

    def __init__(self):
        vocabulary, merges = _vocabulary()
        size = len(vocabulary)
        super().__init__(
            clip_model(vocabulary, merges, _WORDS),
            pad_id=0,
            bos_id=size,
            eos_id=size + 1,
            vocab_size=size + 2,
            clean="repair",
            lower_case=True,
        )

    def clean(self, text):
        # OpenAI's pattern, which ignores case, takes this accent (the small form of a letter) for
        # neither letter nor symbol, and leaves it out.
        return super().clean(text).replace("\u0345", " ")

    def _decode(self, ids):
        """The text of one row of ids; words are spaced as CLIP spaces them."""
        to_byte = {char: byte for byte, char in _byte_characters().items()}
        text = "".join(self._model.id_to_token(i) or "" for i in ids).replace("</w>", " ")
        return bytes(to_byte.get(c, 32) for c in text).decode("utf-8", "replace")

    def _options(self):
        return {}  # the vocabulary ships with the package

    def huggingface_files(self):
        vocabulary, merges = _vocabulary()
        special = {"<|startoftext|>": self.bos_id, "<|endoftext|>": self.eos_id}
        return clip_files(vocabulary | special, merges)


@functools.cache
def _byte_characters():
    """Byte -> printable character, GPT-2's table."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain}
    return table | {byte: chr(256 + n) for n, byte in enumerate(others)}


@functools.cache
def _vocabulary():
    """({token: id}, merges) without the special tokens."""
    text = gzip.decompress(_MERGES.read_bytes()).decode("utf-8")
    merges = [tuple(line.split()) for line in text.splitlines()]
    characters = list(_byte_characters().values())
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(m) for m in merges)]
    return {token: number for number, token in enumerate(tokens)}, merges
