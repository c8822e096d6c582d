"""Exact search and a graph of near neighbours, by the number of pictures.

    pip install -e '.[search]'
    python benchmarks/search_speed.py --rows=10000,100000,200000

Embeddings are drawn: points of 32 dimensions, laid into `--width` and normalised, with noise; so
have pictures fewer dimensions than their embeddings. Queries lie aside of them, as texts do. Prints
what a search of 24 results takes for one query and for 16 together, in milliseconds of the
processor's time over all threads (medians), what it took to make the graph, and its recall@10
against exact search.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from vlrep_jax.search import approximate
from vlrep_jax.search.exact import Exact

INNER, K, TURNS = 32, 24, 15


def drawn(rows, width, seed):
    """Embeddings float32[rows, width] and 256 queries that lie aside of them."""
    rng = np.random.default_rng(seed)
    laid = rng.normal(size=(INNER, width)).astype(np.float32)
    aside = rng.normal(size=width).astype(np.float32) * np.float32(INNER**0.5)

    def points(count, offset):
        x = rng.normal(size=(count, INNER)).astype(np.float32) @ laid
        x += rng.normal(size=x.shape).astype(np.float32) + offset
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    return points(rows, 0), points(256, aside)


def milliseconds(search, queries, count):
    taken = []
    for turn in range(TURNS):
        part = queries[turn * count : (turn + 1) * count] if count == 1 else queries[:count]
        start = time.process_time()
        search(part, K)
        taken.append(1000 * (time.process_time() - start))
    return statistics.median(taken[1:])  # the first compiles, and sends rows to the devices


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="10000,100000,200000")
    parser.add_argument("--width", type=int, default=512)
    args = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"{jax.device_count()} x {device}, width {args.width}; CPU time")
    print(
        f"{'pictures':>10}{'exact, 1':>10}{'exact, 16':>11}{'graph made':>12}{'graph, 1':>10}"
        f"{'graph, 16':>11}{'recall pictures':>17}{'texts':>7}"
    )
    for count in map(int, args.rows.split(",")):
        embeddings, texts = drawn(count, args.width, count)
        rows = np.arange(count)
        exact = Exact(embeddings, rows)
        start = time.process_time()
        made = approximate.new_graph(args.width)
        approximate.grow(made, embeddings, rows)
        made_s = time.process_time() - start
        graph = approximate.Graph(made, {})
        by_graph = lambda queries, k: graph.search(queries, k, embeddings)  # noqa: B023, E731
        times = [milliseconds(s, texts, n) for s in (exact.search, by_graph) for n in (1, 16)]
        pictures = embeddings[:: max(count // 200, 1)]
        recall = [approximate.measured(graph, exact, q, embeddings) for q in (pictures, texts)]
        print(
            f"{count:10,}{times[0]:7.1f} ms{times[1]:8.1f} ms{made_s:10.0f} s{times[2]:7.1f} ms"
            f"{times[3]:8.1f} ms{recall[0]:17.3f}{recall[1]:7.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
