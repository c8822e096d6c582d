"""Recipe files as the command line takes them: a file, and words that change its values."""

import inspect
import runpy
from pathlib import Path


def load_config(path: str, overrides: list[str]):
    """The ConfigDict of a recipe file with `--config.key=value` words applied.

    Args:
      path: 'FILE' or 'FILE:ARG', ARG being passed to the file's get_config.
      overrides: words such as '--config.schedule.peak=1e-3'.

    Raises:
      ValueError: no such key (the near ones are listed), a value of another type, or an argument
        that the recipe does not take.
      FileNotFoundError: no such file.
    """
    from ml_collections import ConfigDict

    file, *arg = path.split(":", 1)
    if not Path(file).is_file():
        raise FileNotFoundError(f"--config={path}: there is no file {file!r}.")
    try:
        get_config = runpy.run_path(file).get("get_config")
        if get_config is None:
            raise ValueError(f"--config={path}: {file} has no function get_config.")
        _check_argument(get_config, arg, path)
        config = get_config(*arg)
    except ValueError:
        raise
    except Exception as error:  # the recipe is the user's code
        name = type(error).__name__
        raise ValueError(f"--config={path}: {name}: {' '.join(str(error).split())}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"--config={path}: get_config returned {type(config).__name__}, not a ConfigDict; "
            "begin with recipes.base()."
        )
    return override_config(config, overrides)


def _check_argument(get_config, arg, path):
    """Raises ValueError where a recipe is given an argument it does not take, or none it needs."""
    try:
        inspect.signature(get_config).bind(*arg)
    except TypeError:
        takes = "takes no argument" if arg else "needs an argument"
        raise ValueError(f"--config={path}: the recipe {takes}, --config=FILE:ARG.") from None


def override_config(config, overrides: list[str]):
    """The ConfigDict with `--config.key=value` words applied; errors as `load_config`."""
    from absl import flags
    from ml_collections import config_flags
    from ml_collections.config_flags.config_flags import UnsupportedOperationError

    for word in overrides:
        _check_override(config, word)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=overrides)
    try:
        values(["vlrep", *overrides])
    except (flags.Error, UnsupportedOperationError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    return values["config"].value.lock()


def _check_override(config, word):
    """Raises ValueError where a word is not --config.KEY=VALUE for a key that the recipe has."""
    from ml_collections import ConfigDict

    from vlrep_jax.build import near

    path, equals, _ = word.partition("=")
    if not equals:
        raise ValueError(f"{word} has no value; write {word}=VALUE.")
    *parents, last = path.removeprefix("--config.").split(".")
    section, name = config, "config"
    for key in (*parents, last):
        if not isinstance(section, ConfigDict):
            raise ValueError(f"{path}: {name} is a value, not a section.")
        if key not in section:
            raise ValueError(f"{path}: {name} has no key {key!r}; {near(key, section.keys())}.")
        section, name = section[key], f"{name}.{key}"
