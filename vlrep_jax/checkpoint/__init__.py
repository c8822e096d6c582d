"""Checkpoints of a work directory: saved at once or not at all, checked when they are read.

WORKDIR/checkpoints/STEP/{state,record}: the train state, and what it is and belongs to.
"""

from vlrep_jax.checkpoint.files import Damaged
from vlrep_jax.checkpoint.store import Checkpoints, Restored, SaveError

__all__ = ["Checkpoints", "Damaged", "Restored", "SaveError"]
