"""What is done to the words of one caption: cleaning and cutting; pure functions of text."""

import html
import re

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff]")
_TAG = re.compile(r"<(?:!--.*?--|/?[a-zA-Z][^<>]*)>", re.DOTALL)
_INLINE = re.compile(r"</?(?:a|b|em|i|font|mark|s|small|span|strong|sub|sup|u)(?:\s[^<>]*)?>", re.I)
_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
# An end of a sentence, in Latin and in East Asian writing, with what closes behind it.
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)|[。！？][”’」』）]*")


def clean(text, *, control=True, tags=True, urls=True, spaces=True):
    """A caption without what no one would say aloud.

    Args:
        text: str.
        control: control characters and invisible spaces go; tabs and line ends stay.
        tags: HTML tags go, and entities such as &amp; become their letters.
        urls: web addresses go.
        spaces: every run of white space becomes one space, and none is at the ends.
    """
    if tags:
        # Entities first: &lt;b&gt; is a tag to whoever made the page's text.
        text = _TAG.sub(" ", _INLINE.sub("", html.unescape(text)))
    if urls:
        text = _URL.sub(" ", text)
    if control:
        text = _CONTROL.sub("", text)
    return _SPACE.sub(" ", text).strip() if spaces else text


def shorten(text, *, max_words=0, max_chars=0):
    """As many whole sentences from the beginning as fit, or of a longer first one its words.

    Args:
        text: str.
        max_words: words, divided by white space; 0 for any number.
        max_chars: letters; 0 for any number. A first word that is longer is cut.
    """

    def fits(part):
        return not (max_words and len(part.split()) > max_words) and not (
            max_chars and len(part) > max_chars
        )

    if fits(text):
        return text
    best = ""
    for end in _SENTENCE_END.finditer(text):
        part = text[: end.end()].strip()
        if not fits(part):
            break
        best = part
    if best:
        return best
    words = list(re.finditer(r"\S+", text))
    for word in words[: max_words or None]:
        if max_chars and word.end() > max_chars:
            break
        best = text[: word.end()].strip()
    return best or text.strip()[: max_chars or None]
