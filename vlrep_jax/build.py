"""The one function that turns a config section into an object, and how it words a misspelling.

A section is a mapping with a `name`, looked up in a table of callables; every other key is a
keyword argument of that callable. Nothing here knows what the tables hold.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial


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


def check_options(entry: Callable, options: Iterable[str], label: str, also=()) -> None:
    """Raises ValueError naming the first option that neither `entry` takes nor `also` lists."""
    parameters = inspect.signature(entry).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = {*(p.name for p in parameters), *also} - {"name", "parent", "self"}
    for option in options:
        if option not in known:
            raise ValueError(f"{label} has no option {option!r}: {near(option, known)}.")


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
      ValueError: no name, an unknown name, an unknown option, or a missing one.
    """
    options = dict(section.items())
    if "name" not in options:
        raise ValueError(f"A {kind} section needs a name; {near('', table)}.")
    name = options.pop("name")
    entry = find(table, name, kind)
    check_options(entry, options, f"{kind} {name!r}")
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
    check_options(function, options, f"{kind} {section['name']!r}")
    return partial(function, **options, **extra) if options or extra else function
