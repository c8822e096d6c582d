"""What the layouts share: reading others' configs without passing over what is not known."""

from collections.abc import Mapping


def only(config: Mapping, label: str, expected: Mapping) -> None:
    """Raises ValueError where an option has a value that is not read here.

    Args:
      config: section of a config.
      label: its name.
      expected: option -> the one value that is.
    """
    for name, value in expected.items():
        if config.get(name, value) not in (value, None):
            raise ValueError(
                f"{label} has {name}={config[name]!r}; only {name}={value!r} is read here."
            )


def positive(config: Mapping, name: str) -> int:
    """A count of a config.

    Raises:
      ValueError: it is missing, or no positive integer.
    """
    value = config.get(name)
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        value = value[0]  # height and width
    if type(value) is not int or value < 1:
        raise ValueError(f"the config has {name}={value!r}, not a positive integer.")
    return value


def activation_of(theirs: str, table: Mapping[str, str], option: str) -> str:
    """Our name of an activation.

    Raises:
      ValueError: it is not known.
    """
    if theirs not in table:
        raise ValueError(f"{option}={theirs!r} is not known; known: {', '.join(table)}.")
    return table[theirs]


def pools_largest_id(text) -> bool:
    """Whether a text tower reads its embedding at the largest id of a text, its end token."""
    return text.pool == "eot" or (text.pool == "eos" and text.eos_id == text.vocab_size - 1)


def name_of_activation(ours: str, table: Mapping[str, str]) -> str:
    """Their first name of an activation.

    Raises:
      ValueError: they have none.
    """
    for theirs, name in table.items():
        if name == ours:
            return theirs
    raise ValueError(f"the layout has no name for the activation {ours!r}.")
