"""Joint image-text representations in JAX: encoders, losses, training, evaluation.

`import vlrep_jax` loads nothing else; its modules load when they are first named, as in
`vlrep_jax.losses.softmax`.
"""

import importlib

__version__ = "0.1.0"

_MODULES = ("data", "evals", "losses", "models", "objectives", "optim", "parallel", "train")


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_MODULES])
