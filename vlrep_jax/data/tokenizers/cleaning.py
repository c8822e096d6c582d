"""How texts are written before they are tokenized; models differ in it, and were trained so."""

import html
import string
from collections.abc import Callable

import ftfy

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def collapse(text: str) -> str:
    """Whitespace of any kind as single spaces, none at the ends."""
    return " ".join(text.split())


def repair(text: str) -> str:
    """OpenAI's and OpenCLIP's: mojibake and odd characters repaired, HTML entities resolved."""
    # On printable ASCII without an entity this changes nothing, and takes most of the time.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return collapse(text)


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
