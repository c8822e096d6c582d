"""Files of class names and of prompt templates, as people keep them beside data sets."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_SHOWN = 5


def in_order(labels: Iterable[str | int]) -> list[str | int]:
    """A data set's labels, each once, in the order of its classes.

    Where all are numbers they go by their value, so that a file of names can follow it.
    """
    labels = set(labels)
    numbers = all(re.fullmatch(r"-?\d+", str(label)) for label in labels)
    return sorted(labels, key=(lambda label: (int(label), str(label))) if numbers else str)


def names_of(classes: Sequence[str], path: str | Path | None = None) -> list[tuple[str, ...]]:
    """What each class of a data set is called in prompts: one name or several.

    A file holds one name a line, a JSON list of names (or of lists of them), or a JSON mapping from
    the data set's label to a name or a list of names. A list goes by the labels where it holds any
    of them, in whatever order; else its i-th entry names the i-th class, and there must be as many.

    Args:
      classes: labels of the data set, in its order.
      path: of the file; None: each label is its own name, `_` being a space.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not such a file, or a class is missing in it.
    """
    if path is None:
        return [(label.replace("_", " "),) for label in classes]
    held = _read(path)
    if isinstance(held, dict):
        named = {str(label): _names(value, path) for label, value in held.items()}
        return [named[label] for label in _all_there(classes, named, path)]
    entries = [_names(value, path) for value in held]
    by_label = {names[0]: names for names in entries}
    if set(by_label) & set(classes):
        return [by_label[label] for label in _all_there(classes, by_label, path)]
    if len(entries) != len(classes):
        raise ValueError(
            f"{path} names {len(entries)} classes, but the data set has {len(classes)}: "
            f"{_few(classes)}."
        )
    return entries


def read_templates(path: str | Path) -> list[str]:
    """Prompts with one `{}` (or `{c}`) each: one a line, or a JSON list.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds no template, or one without its place for a name.
    """
    held = _read(path)
    if not isinstance(held, list) or not all(isinstance(one, str) for one in held):
        raise ValueError(f"{path} must hold one template a line, or a JSON list of them.")
    templates = [one.replace("{c}", "{}") for one in held]
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"{path}: template {template!r} must hold {{}} exactly once, where the class name "
                "goes."
            )
    return templates


def _read(path):
    """A list or mapping that is not empty."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}.") from None
    except OSError as error:
        raise FileNotFoundError(f"{path} cannot be read: {error.strerror}.") from None
    if path.suffix.lower() == ".json":
        try:
            held = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}.") from None
        if not isinstance(held, list | dict):
            raise ValueError(f"{path} must hold a JSON list or mapping.")
    else:
        held = [line.strip() for line in text.splitlines() if line.strip()]
    if not held:
        raise ValueError(f"{path} is empty.")
    return held


def _names(value, path):
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(_is_name(n) for n in names):
        raise ValueError(f"{path} holds {value!r}, where a name or a list of names is expected.")
    return tuple(names)


def _is_name(value):
    return isinstance(value, str) and bool(value.strip())


def _all_there(classes, named, path):
    missing = [label for label in classes if label not in named]
    if missing:
        raise ValueError(f"{path} has no name for {len(missing)} classes: {_few(missing)}.")
    return classes


def _few(labels):
    return ", ".join(labels[:_SHOWN]) + (", ..." if len(labels) > _SHOWN else "")
