"""Values of tables and JSON that other people wrote: found by dotted path, and made sound."""

import json
from collections.abc import Mapping

from vlrep_jax.data.sources.sample import plain, text

_DEPTH = 64  # of lists and objects within each other: no one's captions, and the stack has an end


class BadRow(Exception):
    """A row or file that cannot be used; `reason` is one short stable word for counting."""

    def __init__(self, reason):
        super().__init__(reason)
        self.reason = reason


def json_object(data: bytes) -> dict:
    """The object of a JSON text.

    Raises:
        BadRow: with reason `not_utf8`, or `json` where it is no object or nested beyond 64 levels.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadRow("not_utf8") from None
    except (ValueError, RecursionError):
        raise BadRow("json") from None
    nested = data.count(b"[") + data.count(b"{") > _DEPTH and _is_deep(value)
    if nested or not isinstance(value, dict):
        raise BadRow("json")
    return value


def _is_deep(value):
    level = [value]
    for _ in range(_DEPTH):
        level = [
            item
            for held in level
            if isinstance(held, dict | list)
            for item in (held.values() if isinstance(held, dict) else held)
        ]
    return any(isinstance(item, dict | list) for item in level)


def value_at(row, path):
    """The value at a dotted path, None where there is none; a list gives a list of values."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    value = row
    for part in path.split("."):
        if isinstance(value, list):
            value = [item.get(part) if isinstance(item, Mapping) else None for item in value]
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def value_texts(value):
    """Every text of a value, of any nesting.

    Raises:
        BadRow: with reason `not_text` or `not_utf8`.
    """
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(said for item in value for said in value_texts(item))
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise BadRow("not_text")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadRow("not_utf8")
    return (value,)


def word(value):
    """A value as a text that names something, such as a key; '' for none.

    What is not UTF-8 becomes backslash escapes, which keep names apart.
    """
    return "" if value is None else text(plain(value))
