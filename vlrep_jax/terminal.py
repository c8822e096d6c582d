"""What a terminal is told, and whether anybody still reads it."""

import os
import select
import sys


def one_line(name: str) -> str:
    """A file's name on one line: it may hold anything but a slash and NUL, even what is no text.

    >>> one_line("a\\nb")
    'a\\\\nb'
    """
    safe = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return safe.encode("utf-8", "backslashreplace").decode()


def escape_what_has_no_place():
    """From now on stdout shows letters that its encoding does not have as escapes."""
    if hasattr(sys.stdout, "reconfigure"):  # not so within a notebook
        sys.stdout.reconfigure(errors="backslashreplace")


def warning_line(message, *_):
    """A warning as a line, without the code that it came from."""
    return f"vlrep: warning: {message}\n"


def nobody_listens():
    """Whether what stdout was piped to, such as `head`, has ended; then the rest goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # for errors alone
    is_gone = bool(poll.poll(0))
    if is_gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_gone


def without_late_writes(hook):
    """An unraisablehook without what TensorStore's threads say after a save that failed.

    Of each file that was still under way it would be a traceback, as nobody waits for it any more.
    """

    def shown(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    return shown
