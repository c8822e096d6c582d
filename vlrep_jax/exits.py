"""How a `vlrep` command ends: its exit codes, and which errors are the user's."""

# What a wrong flag, file, value or environment raises; anything else is a fault of this library.
USER_ERRORS = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)
FAULT_CODE = 1  # an error, here or in another process, or no progress for too long
USER_ERROR_CODE = 2
STOPPED_CODE = 42  # told to stop, state saved: run the same command again
INTERRUPTED_CODE = 130  # as a shell has it: 128 + SIGINT
UNHEARD_CODE = 141  # 128 + SIGPIPE: nobody reads what it prints
TERMINATED_CODE = 143  # 128 + SIGTERM


def code_of(error: Exception) -> int:
    """The exit code of a command that ends with an error.

    A data worker that is gone is an OSError too, but nobody's mistake: the same command, started
    again, may well succeed, and launchers start again after any code but USER_ERROR_CODE.
    """
    is_users = isinstance(error, USER_ERRORS) and not isinstance(error, ChildProcessError)
    return USER_ERROR_CODE if is_users else FAULT_CODE
