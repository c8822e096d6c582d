"""Approximate search: a graph of near neighbours (HNSW, by `usearch`) beside the embeddings.

The graph gives candidates, which are scored exactly; what it misses is measured when it is made.
"""

import importlib.util
from pathlib import Path

import numpy as np

from vlrep_jax.search.exact import Exact, rescored
from vlrep_jax.search.store import Snapshot, Store
from vlrep_jax.search.writer import Writer
from vlrep_jax.weights import Pretrained

FROM = 200_000  # pictures from which on a graph is made
MISSING = (
    "approximate search needs a package that is not installed: pip install 'vlrep_jax[search]'"
)
K = 10  # depth of the recall that is measured
_PROBES = 200  # pictures of the index that look for their like
_CANDIDATES = 4  # for each result; they are scored exactly
_LEAST = 100  # candidates
_EXPANSION = 200  # neighbours that are looked at, at least; more is slower and misses less
_REBUILT = 0.25  # share of pictures that are gone, beyond which a graph is made anew
_BATCH = 16_384  # rows added at once

# Texts lie apart from all pictures, where a graph of pictures is weaker: they are measured too.
THINGS = """
apple, baby, ball, beach, bed, bee, bicycle, bird, boat, book, bottle, bread, bridge, bus,
butterfly, cake, camera, candle, car, cat, chair, child, church, city, clock, cloud, coat,
coffee, computer, cow, crowd, cup, dancer, desert, dog, door, dress, drum, elephant, fire, fish,
flag, flower, forest, frog, fruit, garden, guitar, hat, heart, horse, house, island, key,
kitchen, lamp, leaf, lion, man, map, market, monkey, moon, mountain, mouse, mushroom, night sky,
ocean, orange, painting, person, piano, pizza, plane, pumpkin, rabbit, rain, ring, river, road,
rose, sheep, ship, shoe, snail, snake, snow, spider, star, sunset, table, tiger, tractor, train,
tree, turtle, umbrella, waterfall, window, woman
"""


def probes() -> list[str]:
    """Texts whose results are compared with those of exact search."""
    return [f"a photo: {' '.join(thing.split())}" for thing in THINGS.split(",")]


class Graph:
    """The graph of an index, to search; `opened` gives it.

    Attributes:
      recall: {"pictures": share, "texts": share}, of the K nearest that it found when it was made.
    """

    def __init__(self, graph, recall):
        self._graph, self.recall = graph, recall

    def search(self, queries: np.ndarray, k: int, embeddings: np.ndarray):
        """The k best rows of each query among its candidates; as `Exact.search`.

        Args:
          queries: float32[q, d], L2-normalised.
          k: at most as many as there are pictures.
          embeddings: of the index, float32[m, d].

        Returns:
          Rows int64[q, k] and scores float64[q, k]; None where there are not k candidates.
        """
        count = min(max(_CANDIDATES * k, _LEAST), len(self._graph))
        matches = self._graph.search(np.asarray(queries, np.float32), count)
        rows = np.atleast_2d(matches.keys).astype(np.int64)
        # Of one query there are just the keys; of several, what is missing means nothing.
        counts = np.asarray(getattr(matches, "counts", [rows.shape[1]]))
        if counts.min() < k:
            return None
        scores = rescored(queries, embeddings, rows)
        scores[np.arange(rows.shape[1])[None] >= counts[:, None]] = -np.inf
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def opened(store: Store) -> Graph | None:
    """The graph of the pictures as they are now; None where there is none.

    Raises:
      ModuleNotFoundError: there is one, and usearch is not installed.
      ValueError: its file is gone or damaged.
    """
    about = store.about["graph"]
    if not about or about["generation"] != store.about["generation"]:
        return None
    return Graph(_restored(store.path / about["file"], view=True), about["recall"])


def update(writer: Writer, model: Pretrained) -> dict:
    """Brings the graph of an index up to date, and measures it.

    Args:
      writer: of an index that was published.
      model: embeds `probes`, where it has a tokenizer.

    Returns:
      {"pictures": share, "texts": share}, the recall of the K nearest.

    Raises:
      ModuleNotFoundError: usearch is not installed.
    """
    snapshot, now = writer.snapshot(), writer.about["graph"]
    if now and now["generation"] == writer.about["generation"]:
        return now["recall"]
    graph = _updated(writer, snapshot)
    name = f"graph-{writer.about['generation']}.usearch"
    part = writer.path / f"{name}.part"
    graph.save(str(part))
    part.replace(writer.path / name)
    exact = Exact(snapshot.embeddings, snapshot.rows)
    queries = {"pictures": np.array(snapshot.embeddings[_spread(snapshot.rows, _PROBES)])}
    if model.tokenizer is not None:
        queries["texts"] = model.encode_text(probes())
    recall = {
        kind: measured(Graph(graph, {}), exact, rows, snapshot.embeddings)
        for kind, rows in queries.items()
    }
    about = {"file": name, "generation": writer.about["generation"], "recall": recall}
    writer.set_graph(about | {"embeddings": writer.about["embeddings"]})
    return recall


def measured(graph: Graph, exact: Exact, queries: np.ndarray, embeddings: np.ndarray) -> float:
    """The share of the K nearest by exact search that the graph finds too."""
    k = min(K, len(exact))
    wanted, _ = exact.search(queries, k)
    found = graph.search(queries, k, embeddings)
    if found is None:
        return 0.0
    found, _ = found
    return float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]))


def _updated(writer, snapshot: Snapshot):
    """A graph of these rows: the one that is there with what has changed, or a new one."""
    about, graph = writer.about["graph"], None
    if about and about["embeddings"] == writer.about["embeddings"]:
        try:
            graph = _restored(writer.path / about["file"], view=False)
        except ValueError:  # damaged: it can be made again
            graph = None
    if graph is not None:
        held = graph.keys[:].astype(np.int64)
        gone = np.setdiff1d(held, snapshot.rows)
        if len(gone) > _REBUILT * len(held):
            graph = None
        elif len(gone):
            graph.remove(gone)
    if graph is None:
        graph, held = new_graph(snapshot.embeddings.shape[1]), np.zeros(0, np.int64)
    grow(graph, snapshot.embeddings, np.setdiff1d(snapshot.rows, held))
    return graph


def new_graph(width: int):
    """An empty usearch index of float16[width] by inner product.

    Raises:
      ModuleNotFoundError: usearch is not installed.
    """
    options = dict(metric="ip", dtype="f16", expansion_search=_EXPANSION)
    return _usearch().Index(ndim=width, **options)


def grow(graph, embeddings: np.ndarray, rows: np.ndarray) -> None:
    """Adds rows of float32[m, d], int64[n], to a usearch index, by all cores."""
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        graph.add(part.astype(np.uint64), np.ascontiguousarray(embeddings[part]))


def _restored(path: Path, *, view):
    try:
        graph = _usearch().Index.restore(str(path), view=view)
    except (RuntimeError, OSError) as error:
        graph, why = None, str(error)
    else:
        why = "it is gone"
    if graph is None:
        raise ValueError(f"{path} cannot be read ({why}): run `vlrep index` again, or use --exact.")
    graph.expansion_search = _EXPANSION
    return graph


def is_installed() -> bool:
    """Whether usearch is."""
    return importlib.util.find_spec("usearch") is not None


def _usearch():
    try:
        from usearch import index
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{MISSING}; or search with --exact.") from None
    return index


def _spread(rows, count):
    """Up to `count` rows at even distances."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]
