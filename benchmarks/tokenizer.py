"""CLIP's tokenizer here and open_clip's own, on captions in fourteen languages.

    pip install -e '.[test,parity]'
    python benchmarks/tokenizer.py

Texts are the names of all emoji in fourteen languages, two at a time, each seen once: neither side
finds a caption that it has met. Both turn lists of strings into padded arrays of 77 ids in one
process; they take turns. Prints captions a second, medians over the pairs, and how many texts got
different ids.
"""

import argparse
import random
import statistics
import time
from importlib.metadata import version

import emoji
import numpy as np
import torch
from sides import declare_missing_operators

from vlrep_jax.data.tokenizers import ClipTokenizer

LANGUAGES = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
LENGTH = 77


def captions(count, seed):
    """`count` different texts of two names each."""
    for language in LANGUAGES:
        emoji.config.load_language(language)
    names = sorted(
        {
            name.strip(":").replace("_", " ")
            for entry in emoji.EMOJI_DATA.values()
            for language, name in entry.items()
            if language in LANGUAGES
        }
    )
    rng, texts = random.Random(seed), set()
    while len(texts) < count:
        texts.add(f"{rng.choice(names)}, {rng.choice(names)}")
    return sorted(texts, key=lambda text: rng.random())


def rate(encode, texts, batch):
    """(ids, texts a second)."""
    start = time.perf_counter()
    ids = [np.asarray(encode(texts[i : i + batch])) for i in range(0, len(texts), batch)]
    return np.concatenate(ids), len(texts) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=20_000, help="of a turn")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    declare_missing_operators(torch)
    import open_clip

    mine, theirs = ClipTokenizer(), open_clip.SimpleTokenizer()
    ours = lambda texts: mine(texts, LENGTH)  # noqa: E731
    peer = lambda texts: theirs(texts, LENGTH).numpy()  # noqa: E731
    texts = captions(args.texts * args.pairs, seed=0)
    rates, wrong = [], 0
    for pair in range(args.pairs):
        some = texts[pair * args.texts : (pair + 1) * args.texts]
        (a, fast), (b, slow) = rate(ours, some, args.batch), rate(peer, some, args.batch)
        rates.append((fast, slow))
        wrong += int((a != b).any(axis=1).sum())
    fast, slow = (statistics.median(side) for side in zip(*rates, strict=True))
    ratio = statistics.median(a / b for a, b in rates)
    print(f"open_clip_torch {version('open_clip_torch')}, tokenizers {version('tokenizers')}")
    print("| | captions a second |\n|---|---|")
    print(f"| vlrep_jax | {fast:,.0f} |\n| open_clip | {slow:,.0f} |")
    print(f"Ratio {ratio:.2f}, median of {args.pairs} pairs of {args.texts:,} texts.")
    print(f"Different ids: {wrong} of {len(texts):,} texts.")


if __name__ == "__main__":
    main()
