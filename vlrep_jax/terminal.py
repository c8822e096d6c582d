"""What a terminal is told, and how it takes it."""


def one_line(name: str) -> str:
    """A file's name on one line: it may hold anything but a slash and NUL, even what is no text.

    >>> one_line("a\\nb")
    'a\\\\nb'
    """
    safe = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return safe.encode("utf-8", "backslashreplace").decode()
