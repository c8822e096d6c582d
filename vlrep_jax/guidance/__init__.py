"""Text-guided generation and editing: descent through any dual encoder over any generator."""

from vlrep_jax.guidance.edit import EDIT_VIEWS, Edited, edit
from vlrep_jax.guidance.generators import GENERATORS, Generator
from vlrep_jax.guidance.loop import Guided, decoded, guide
from vlrep_jax.guidance.targets import Guide, Target, Views

__all__ = [
    "EDIT_VIEWS",
    "GENERATORS",
    "Edited",
    "Generator",
    "Guide",
    "Guided",
    "Target",
    "Views",
    "decoded",
    "edit",
    "guide",
]
