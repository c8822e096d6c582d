"""Searching pictures by texts and pictures: an index on disk, exact and approximate search.

>>> clip = weights.load("runs/quickstart")
>>> build("INDEX", clip, described(clip, "runs/quickstart"), ["photos"])
>>> engine = Engine("INDEX")
>>> text = clip.encode_text(["a red heart"])[0]
>>> for hit in engine.search(make_query([text]), k=5):
...     print(hit.rank, hit.score, hit.picture.found.name)
"""

from vlrep_jax.search.engine import Engine, Hit, make_query
from vlrep_jax.search.exact import Exact
from vlrep_jax.search.index import build
from vlrep_jax.search.model import described

__all__ = ["Engine", "Exact", "Hit", "build", "described", "make_query"]
