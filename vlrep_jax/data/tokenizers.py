"""Texts to token ids; `TOKENIZERS` lists the kinds, `load_tokenizer` reads a saved one.

All share `Tokenizer`'s interface and work in-process on Hugging Face `tokenizers`. In every kind
text that spells a special token never becomes that token.
"""

import functools
import gzip
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import ftfy
import numpy as np
import tokenizers as hf

_CLIP_MERGES = Path(__file__).parent / "clip_vocabulary" / "merges.txt.gz"
# OpenAI's pattern without its special tokens, which would let a caption end itself early.
_CLIP_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_FORMAT = "vlrep_jax tokenizer 1"


class Tokenizer:
    """Common interface; the kinds differ in cleaning, vocabulary and special ids.

    Attributes:
        kind: its name in TOKENIZERS.
        vocab_size: ids are below it; an embedding table needs as many rows.
        pad_id, eos_id, bos_id: special ids; bos_id is None where texts have no start token.
    """

    kind = ""

    def __init__(self, model, *, pad_id, eos_id, bos_id=None, offset=0, vocab_size):
        self._model = model
        self._offset = offset
        self.pad_id, self.eos_id, self.bos_id = pad_id, eos_id, bos_id
        self.vocab_size = vocab_size

    def clean(self, text):
        """The text as it is tokenized; whitespace collapsed and more by kind."""
        return " ".join(text.split())

    def encode_batch(self, texts: Sequence[str], context_length: int):
        """Encodes texts to equal length.

        Args:
            texts: b texts.
            context_length: l, start and end token included.

        Returns:
            int32[b, l], padded right with pad_id, and bool[b], true where a text was cut; a cut
            text still ends in eos_id.

        Raises:
            ValueError: context_length has no room for a token between start and end.
        """
        special = 1 if self.bos_id is None else 2
        if context_length <= special:
            raise ValueError(f"context_length={context_length} must be more than {special}.")
        encodings = self._model.encode_batch_fast(
            [self.clean(text) for text in texts], add_special_tokens=False
        )
        ids = np.full((len(encodings), context_length), self.pad_id, np.int32)
        truncated = np.zeros(len(encodings), bool)
        room = context_length - special
        for row, encoding in enumerate(encodings):
            text_ids = self._text_ids(encoding)
            body = np.asarray(text_ids[:room], np.int32) + self._offset
            truncated[row] = len(text_ids) > room
            start = special - 1
            if start:
                ids[row, 0] = self.bos_id
            ids[row, start : start + len(body)] = body
            ids[row, start + len(body)] = self.eos_id
        return ids, truncated

    def _text_ids(self, encoding):
        return encoding.ids

    def __call__(self, texts, context_length):
        """int32[b, context_length] of b texts; see `encode_batch`."""
        return self.encode_batch(texts, context_length)[0]

    def encode(self, text, context_length):
        """(int32[context_length], whether the text was cut); see `encode_batch`."""
        ids, truncated = self.encode_batch([text], context_length)
        return ids[0], bool(truncated[0])

    def decode(self, ids):
        """The cleaned text of one row of ids, up to its end token."""
        body = []
        for number, token in enumerate(np.asarray(ids).tolist()):
            if token == self.eos_id:
                break
            if not (number == 0 and token == self.bos_id):
                body.append(token - self._offset)
        # What no text encodes to (pads before the end) has no characters either.
        known = [token for token in body if 0 <= token < self._model.get_vocab_size()]
        return self._model.decode(known, skip_special_tokens=False).strip()

    def fingerprint(self):
        """Stable hash of everything that decides the ids."""
        return hashlib.sha256(json.dumps(self._described(), sort_keys=True).encode()).hexdigest()

    def save(self, path):
        """Writes the tokenizer to one JSON file for `load_tokenizer`."""
        text = json.dumps(self._described(), ensure_ascii=False)
        part = Path(path).with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)

    def _described(self):
        return {"format": _FORMAT, "kind": self.kind, "options": self._options()}

    def _options(self):
        return {"tokenizer_json": self._model.to_str()}


class ClipTokenizer(Tokenizer):
    """OpenAI CLIP's byte-level BPE: 49,408 ids, start 49406, end 49407, padded with 0.

    Texts are repaired by ftfy, HTML entities resolved and lower-cased, as CLIP was trained.
    """

    kind = "clip"

    def __init__(self):
        vocabulary, merges = _clip_vocabulary()
        model = hf.Tokenizer(hf.models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
        model.pre_tokenizer = hf.pre_tokenizers.Sequence(
            [
                hf.pre_tokenizers.Split(hf.Regex(_CLIP_WORDS), "removed", invert=True),
                hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        size = len(vocabulary)
        super().__init__(model, pad_id=0, bos_id=size, eos_id=size + 1, vocab_size=size + 2)

    def clean(self, text):
        # On printable ASCII without an entity ftfy changes nothing, and takes most of the time.
        if not (text.isascii() and text.isprintable() and "&" not in text):
            text = html.unescape(html.unescape(ftfy.fix_text(text)))
        return super().clean(text).lower()

    def decode(self, ids):
        """The text of one row of ids; words are spaced as CLIP spaces them."""
        to_byte = {char: byte for byte, char in _byte_characters().items()}
        words = []
        for token in np.asarray(ids).tolist():
            if token == self.eos_id:
                break
            if token != self.bos_id:
                words.append(self._model.id_to_token(token) or "")
        text = "".join(words).replace("</w>", " ")
        raw = bytes(to_byte.get(c, 32) for c in text)
        return raw.decode("utf-8", "replace").strip()

    def _options(self):
        return {}  # the vocabulary ships with the package


class BpeTokenizer(Tokenizer):
    """A byte-level BPE trained on given texts by `train_bpe`; lower-cased, padded with 0.

    The end token has the largest id, so that pooling at the argmax of ids finds it.
    """

    kind = "bpe"

    def __init__(self, tokenizer_json):
        model = hf.Tokenizer.from_str(tokenizer_json)
        # 0 pads, so the model's ids move up by one and the end token comes after them all.
        end = model.get_vocab_size() + 1
        super().__init__(model, pad_id=0, eos_id=end, offset=1, vocab_size=end + 1)

    def clean(self, text):
        return super().clean(ftfy.fix_text(text)).lower()


class FileTokenizer(Tokenizer):
    """Any Hugging Face `tokenizer.json`, such as SigLIP's.

    A special token spelt in a text is plain text to a BPE; a unigram model, which holds it as a
    piece, leaves it out.

    Args:
        path: the file; or give its content as `tokenizer_json`.
        lower_case: whether texts are lower-cased first.
        pad_id, eos_id: ids of its padding and end token (SigLIP: 1 and 1).
        bos_id: id of its start token; None (SigLIP) for none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no `tokenizer.json`, or an id is outside its vocabulary.
    """

    kind = "file"

    def __init__(
        self, path=None, *, pad_id, eos_id, bos_id=None, lower_case=False, tokenizer_json=None
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
        self._lower_case = lower_case
        size = model.get_vocab_size(with_added_tokens=True)
        for name, value in (("pad_id", pad_id), ("eos_id", eos_id), ("bos_id", bos_id)):
            if value is not None and not 0 <= value < size:
                raise ValueError(f"{name}={value} is outside the vocabulary of {size} in {path}.")
        super().__init__(model, pad_id=pad_id, eos_id=eos_id, bos_id=bos_id, vocab_size=size)

    def clean(self, text):
        text = super().clean(text)
        return text.lower() if self._lower_case else text

    def _text_ids(self, encoding):
        return [i for i in encoding.ids if i not in (self.pad_id, self.eos_id, self.bos_id)]

    def __setstate__(self, state):
        vars(self).update(state)
        self._model.encode_special_tokens = True  # the library does not pickle it

    def _options(self):
        ids = {"pad_id": self.pad_id, "eos_id": self.eos_id, "bos_id": self.bos_id}
        return super()._options() | ids | {"lower_case": self._lower_case}


TOKENIZERS = {"clip": ClipTokenizer, "bpe": BpeTokenizer, "file": FileTokenizer}


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


def load_tokenizer(path) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a saved tokenizer.
    """
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        if saved["format"] != _FORMAT:
            raise KeyError(saved["format"])
        return TOKENIZERS[saved["kind"]](**saved["options"])
    except FileNotFoundError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(
            f"{path} is not a tokenizer saved by vlrep_jax ({error!r}); a Hugging Face "
            "tokenizer.json opens as tokenizer 'file'."
        ) from error


@functools.cache
def _byte_characters():
    """Byte -> printable character, GPT-2's table."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain}
    return table | {byte: chr(256 + n) for n, byte in enumerate(others)}


@functools.cache
def _clip_vocabulary():
    text = gzip.decompress(_CLIP_MERGES.read_bytes()).decode("utf-8")
    merges = [tuple(line.split()) for line in text.splitlines()]
    characters = list(_byte_characters().values())
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(m) for m in merges)]
    return {token: number for number, token in enumerate(tokens)}, merges
