"""Texts to token ids; `TOKENIZERS` lists the kinds, `load_tokenizer` reads a saved one,
`tokenizer_from_directory` another project's.

All share `Tokenizer`'s interface and work in-process. In every kind text that spells a special
token never becomes that token.
"""

import json
from pathlib import Path

from vlrep_jax.data.tokenizers.base import FORMAT, Tokenizer
from vlrep_jax.data.tokenizers.bpe import BpeTokenizer, train_bpe
from vlrep_jax.data.tokenizers.clip import ClipTokenizer
from vlrep_jax.data.tokenizers.directory import save_huggingface, tokenizer_from_directory
from vlrep_jax.data.tokenizers.file import FileTokenizer
from vlrep_jax.data.tokenizers.pieces import SentencePieceTokenizer
from vlrep_jax.data.tokenizers.wordpiece import WordPieceTokenizer

__all__ = [
    "TOKENIZERS",
    "BpeTokenizer",
    "ClipTokenizer",
    "FileTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "WordPieceTokenizer",
    "load_tokenizer",
    "save_huggingface",
    "tokenizer_from_directory",
    "train_bpe",
]

TOKENIZERS = {
    "clip": ClipTokenizer,
    "bpe": BpeTokenizer,
    "file": FileTokenizer,
    "sentencepiece": SentencePieceTokenizer,
    "wordpiece": WordPieceTokenizer,
}


def load_tokenizer(path) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a saved tokenizer.
    """
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        if saved["format"] != FORMAT:
            raise KeyError(saved["format"])
        return TOKENIZERS[saved["kind"]](**saved["options"])
    except FileNotFoundError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(
            f"{path} is not a tokenizer saved by vlrep_jax ({error!r}); a Hugging Face "
            "tokenizer.json opens as tokenizer 'file'."
        ) from error
