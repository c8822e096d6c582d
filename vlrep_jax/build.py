"""The one function that turns a config section into an object, and how it words a misspelling.

A section is a mapping with a `name`, looked up in a table of callables; every other key is a
keyword argument of that callable. Nothing here knows what the tables hold.
"""

import difflib
import inspect
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import UnionType
from typing import get_args, get_origin


def near(name: str, known: Iterable[str]) -> str:
    """Words for an unknown name: the close ones if there are any, then all of them."""
    known = sorted(map(str, known))
    # Case is the commonest slip in names such as ViT-B-32, so it does not count as a difference.
    folded = {k.lower(): k for k in known}
    word = str(name).lower()
    close = [word] if word in folded else difflib.get_close_matches(word, folded, n=3)
    close = [folded[c] for c in close]
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}known: {', '.join(known) or 'none'}"


def find(table: Mapping[str, Callable], name: str, kind: str) -> Callable:
    """The entry of a table.

    Raises:
      ValueError: no such entry; the message lists the near and the known names.
    """
    if name not in table:
        raise ValueError(f"Unknown {kind} {name!r}: {near(name, table)}.")
    return table[name]


def check_options(
    entry: Callable, options: Iterable[str], label: str, also=(), bound: bool = False
) -> None:
    """Raises ValueError naming the first option that neither `entry` takes nor `also` lists.

    With `bound`, positional parameters without a default are the program's, given with each call.
    """
    parameters = inspect.signature(entry).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    given = {
        p.name
        for p in parameters
        if bound and p.default is p.empty and p.kind is not p.KEYWORD_ONLY
    }
    known = {*(p.name for p in parameters), *also} - {"name", "parent", "self"} - given
    for option in options:
        if option not in known:
            raise ValueError(f"{label} has no option {option!r}: {near(option, known)}.")


# What a value is called that an annotation asks for, and whether one is it.
_WORDS = {
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: _is_number(value, numbers.Integral)),
    float: ("a number", lambda value: _is_number(value, numbers.Real)),
    str: ("a text", lambda value: isinstance(value, str)),
    os.PathLike: ("a path", lambda value: isinstance(value, os.PathLike)),
    type(None): ("None", lambda value: value is None),
    Mapping: ("a mapping", lambda value: hasattr(value, "items")),
    Sequence: ("a list", lambda value: isinstance(value, list | tuple)),
}


def check_types(entry: Callable, options: Mapping, label: str) -> None:
    """Raises ValueError where an option is not of the type that `entry` annotates it with."""
    parameters = inspect.signature(entry).parameters
    for option, value in options.items():
        annotation = getattr(parameters.get(option), "annotation", None)
        kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        origins = [get_origin(kind) or kind for kind in kinds]
        if not all(origin in _WORDS for origin in origins):
            continue  # not annotated, or with a class that says itself what it takes
        if not any(_is_kind(value, kind) for kind in kinds):
            words = [
                _WORDS[origin][0] + (" of texts" if _holds_texts(kind) else "")
                for origin, kind in zip(origins, kinds, strict=True)
                if origin is not os.PathLike
            ]
            raise ValueError(f"{label}: {option}={value!r} must be {' or '.join(words)}.")


def _is_kind(value, kind):
    if not _WORDS[get_origin(kind) or kind][1](value):
        return False
    if not _holds_texts(kind):
        return True
    items = [x for pair in value.items() for x in pair] if hasattr(value, "items") else value
    return all(isinstance(item, str) for item in items)


def _holds_texts(kind):
    return set(get_args(kind)) == {str}


def _is_number(value, kind):
    return isinstance(value, kind) and not isinstance(value, bool) and value == value


def plain(section):
    """The section as built-in dicts, lists and scalars, whatever mapping type it came as."""
    if isinstance(section, Mapping) or hasattr(section, "items"):
        return {str(k): plain(v) for k, v in section.items()}
    if isinstance(section, list | tuple):
        return [plain(v) for v in section]
    return section


def build(table: Mapping[str, Callable], section: Mapping, kind: str, **extra):
    """Calls the table's entry named by `section['name']` with the section's other keys.

    Args:
      table: name -> callable.
      section: mapping with `name`; the rest are keyword arguments.
      kind: what the table holds, in the singular, for messages ("loss", "model").
      extra: arguments that the program adds to the user's.

    Raises:
      ValueError: no name, an unknown name, an unknown option, a missing one, or one of another
        type than the entry annotates.
    """
    options = dict(section.items())
    if "name" not in options:
        raise ValueError(f"A {kind} section needs a name; {near('', table)}.")
    name = options.pop("name")
    entry = find(table, name, kind)
    check_options(entry, options, f"{kind} {name!r}")
    check_types(entry, options, f"{kind} {name!r}")
    try:
        inspect.signature(entry).bind(**options, **extra)
    except TypeError as error:
        raise ValueError(f"{kind} {name!r}: {error}.") from None
    return entry(**options, **extra)


def bind(table: Mapping[str, Callable], section: Mapping, kind: str, **extra) -> Callable:
    """The table's function named by `section['name']` with the section's other keys bound.

    The result can be pickled. Arguments and errors as `build`, but the function is not called.
    """
    options = plain(section)
    function = find(table, options.pop("name", None), kind)
    check_options(function, options, f"{kind} {section['name']!r}", bound=True)
    check_types(function, options, f"{kind} {section['name']!r}")
    return partial(function, **options, **extra) if options or extra else function
