"""The interface of all tokenizers, and how they are saved."""

import hashlib
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from vlrep_jax.data.tokenizers.cleaning import CLEANERS, check_clean

FORMAT = "vlrep_jax tokenizer 1"
ON_LONG = ("cut", "error")
# Texts at a time: the library's encodings hold far more than the ids.
_CHUNK = 4096


class Tokenizer:
    """Common interface; the kinds differ in cleaning, vocabulary and special ids.

    Attributes:
        kind: its name in TOKENIZERS.
        vocab_size: ids are below it; an embedding table needs as many rows.
        pad_id, eos_id, bos_id: special ids; bos_id is None where texts have no start token.
    """

    kind = ""

    def __init__(self, *, pad_id, eos_id, bos_id=None, vocab_size, clean, lower_case):
        check_clean(clean)
        self.pad_id, self.eos_id, self.bos_id = pad_id, eos_id, bos_id
        self.vocab_size = vocab_size
        self._clean, self._lower_case = clean, lower_case

    def clean(self, text: str) -> str:
        """The text as it is tokenized."""
        text = CLEANERS[self._clean](text)
        return text.lower() if self._lower_case else text

    def encode_batch(self, texts: Sequence[str], context_length: int, on_long: str = "cut"):
        """Encodes texts to equal length.

        Args:
            texts: b texts.
            context_length: l, start and end token included.
            on_long: what happens to a text that does not fit: `cut` keeps its beginning and the end
                token, `error` raises.

        Returns:
            int32[b, l], padded right with pad_id, and bool[b], true where a text was cut; a cut
            text still ends in eos_id.

        Raises:
            ValueError: context_length has no room for a token between start and end, or a text is
                too long for on_long='error'.
        """
        special = 1 if self.bos_id is None else 2
        if context_length <= special:
            raise ValueError(f"context_length={context_length} must be more than {special}.")
        if on_long not in ON_LONG:
            raise ValueError(f"on_long={on_long!r} is unknown; it is 'cut' or 'error'.")
        bodies = self._encode([self.clean(text) for text in texts])
        room = context_length - special
        lengths = np.fromiter(map(len, bodies), np.int64, len(bodies))
        truncated = lengths > room
        if on_long == "error" and truncated.any():
            index = int(truncated.argmax())
            raise ValueError(
                f"Text {index} has {lengths[index] + special} tokens with its special ones, more "
                f"than context_length={context_length}: {texts[index][:60]!r}. Shorten it, or cut "
                "with on_long='cut'."
            )
        lengths = np.minimum(lengths, room)
        flat = chain.from_iterable(body[:room] for body in bodies)
        start = special - 1
        ids = np.full((len(bodies), context_length), self.pad_id, np.int32)
        column = np.arange(context_length)
        inside = (column >= start) & (column < start + lengths[:, None])
        ids[inside] = np.fromiter(flat, np.int32, int(lengths.sum()))
        ids[column == start + lengths[:, None]] = self.eos_id
        if start:
            ids[:, 0] = self.bos_id
        return ids, truncated

    def _encode(self, texts):
        """The ids of each of a list of cleaned texts, without special tokens."""
        raise NotImplementedError

    def __call__(self, texts, context_length, on_long="cut"):
        """int32[b, context_length] of b texts; see `encode_batch`."""
        return self.encode_batch(texts, context_length, on_long)[0]

    def encode(self, text, context_length, on_long="cut"):
        """(int32[context_length], whether the text was cut); see `encode_batch`."""
        ids, truncated = self.encode_batch([text], context_length, on_long)
        return ids[0], bool(truncated[0])

    def decode(self, ids) -> str:
        """The cleaned text of one row of ids, up to its end token."""
        body = []
        for number, token in enumerate(np.asarray(ids).tolist()):
            if token == self.eos_id:
                break
            if not (number == 0 and token == self.bos_id):
                body.append(token)
        return self._decode(body).strip()

    def _decode(self, ids):
        """The text of ids without special tokens; ids that no text has may be among them."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Stable hash of everything that decides the ids."""
        return hashlib.sha256(json.dumps(self._described(), sort_keys=True).encode()).hexdigest()

    def save(self, path) -> None:
        """Writes the tokenizer to one JSON file for `load_tokenizer`."""
        text = json.dumps(self._described(), ensure_ascii=False)
        part = Path(path).with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)

    def _described(self):
        return {"format": FORMAT, "kind": self.kind, "options": self._options()}

    def _options(self):
        """The arguments that make this tokenizer again, as JSON values."""
        raise NotImplementedError

    def huggingface_files(self) -> dict:
        """What `save_huggingface` writes: name of a file -> str, bytes, or a JSON value.

        Raises:
            ValueError: `transformers` has no tokenizer that gives these ids.
        """
        raise NotImplementedError

    def openclip_options(self) -> dict:
        """What OpenCLIP is to do around `huggingface_files`: its `tokenizer_kwargs`."""
        return {"clean": "canonicalize"} if self._clean == "canonicalize" else {}


class FastTokenizer(Tokenizer):
    """A tokenizer on a model of Hugging Face `tokenizers`, whose ids are `offset` below ours."""

    def __init__(self, model, *, offset=0, **common):
        super().__init__(**common)
        self._model, self._offset = model, offset

    def _encode(self, texts):
        bodies = []
        for start in range(0, len(texts), _CHUNK):
            part = texts[start : start + _CHUNK]
            encodings = self._model.encode_batch_fast(part, add_special_tokens=False)
            bodies += [encoding.ids for encoding in encodings]
        if self._offset:
            bodies = [[i + self._offset for i in ids] for ids in bodies]
        return bodies

    def _decode(self, ids):
        # What no text encodes to (pads before the end) has no characters either.
        ids = [i - self._offset for i in ids]
        known = [i for i in ids if 0 <= i < self._model.get_vocab_size()]
        return self._model.decode(known, skip_special_tokens=False)
