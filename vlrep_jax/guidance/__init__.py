"""Text-guided generation and editing: descent through any dual encoder over any generator."""

from vlrep_jax.guidance.generators import GENERATORS, Generator
from vlrep_jax.guidance.loop import Guided, guide
from vlrep_jax.guidance.targets import Guide, Target, Views

__all__ = ["GENERATORS", "Generator", "Guide", "Guided", "Target", "Views", "guide"]
