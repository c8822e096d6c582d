"""How texts are written before they are tokenized; models differ in it, and were trained so."""

import html
import re
import string
import unicodedata
from collections.abc import Callable

import ftfy
from ftfy.badness import is_bad

# Characters that no step of ftfy changes by itself: printable ASCII without the ampersand, letters
# of the common scripts without Latin's ligatures, kana, Han and Hangul. Others take the long way.
_UNTOUCHED = re.compile(
    "[ -%'-~\u00c0-\u0131\u0134-\u0148\u014a-\u017e\u0180-\u01c3\u01cd-\u01f0\u01f4-\u024f"
    "\u0370-\u052f\u05d0-\u05ea\u0620-\u064a\u0660-\u06d3\u0900-\u0e5b\u3001-\u30ff\u4e00-\u9fff"
    "\uac00-\ud7a3]*"
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def collapse(text: str) -> str:
    """Whitespace of any kind as single spaces, none at the ends."""
    return " ".join(text.split())


def repair(text: str) -> str:
    """OpenAI's and OpenCLIP's: mojibake and odd characters repaired, HTML entities resolved."""
    # Where this changes nothing, it takes most of the time.
    if not _is_whole(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return collapse(text)


def _is_whole(text):
    """Whether ftfy has nothing to repair, by what its steps look for: never true where it has."""
    if text.isascii():
        return text.isprintable() and "&" not in text
    return (
        _UNTOUCHED.fullmatch(text) is not None
        and unicodedata.is_normalized("NFC", text)
        and not is_bad(text)
    )


def siglip(text: str) -> str:
    """Hugging Face's for SigLIP: lower case, without ASCII's punctuation, the underscore too."""
    return collapse(text.lower().translate(_NO_PUNCTUATION))


def canonicalize(text: str) -> str:
    """OpenCLIP's for SigLIP: repaired, the underscore a space, without punctuation, lower case."""
    return collapse(repair(text).replace("_", " ").translate(_NO_PUNCTUATION).lower())


def check_clean(clean: str) -> None:
    """Raises ValueError where there is no such way to clean."""
    if clean not in CLEANERS:
        raise ValueError(f"clean={clean!r} is unknown; known: {', '.join(CLEANERS)}.")


# The word in a tokenizer's options -> what it does.
CLEANERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "whitespace": collapse,
    "repair": repair,
    "siglip": siglip,
    "canonicalize": canonicalize,
}
