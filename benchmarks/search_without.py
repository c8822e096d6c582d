"""What `--not` does, by how much of what is not wanted is taken from the query.

    pip install -e '.[quickstart]'
    python benchmarks/search_without.py --model=runs/quickstart --index=INDEX

INDEX is of Twemoji's 72x72 files, whose names are code points: `emoji` says what they show. Asked
are people and hands "with a skin tone", and not one tone of three; of the 20 nearest it counts the
share that shows what is wanted, and the share of the tone that is not.
"""

import argparse
import re
from pathlib import Path

import emoji
import numpy as np

from vlrep_jax import weights
from vlrep_jax.search import Engine, engine, make_query

WANTED = ("woman", "man", "person", "hand")
UNWANTED = ("dark skin tone", "medium skin tone", "light skin tone")
SHARES = (0, 0.25, 0.5, 0.75, 1)
K = 20


def shown(path):
    """What a file of Twemoji shows, in words; '' where it is none."""
    try:
        letters = "".join(chr(int(part, 16)) for part in Path(path).stem.split("-"))
    except ValueError:
        return ""
    return emoji.demojize(letters).strip(":").replace("_", " ").replace("-", " ")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--index", required=True)
    args = parser.parse_args()
    clip = weights.load(args.model)
    texts = [*(f"a {what}, skin tone" for what in WANTED), *UNWANTED]
    vectors = dict(zip(texts, clip.encode_text(texts), strict=True))
    print("taken   wanted   unwanted")
    with Engine(args.index) as opened:
        for share in SHARES:
            engine.WITHOUT, right, wrong = share, [], []
            for what in WANTED:
                for tone in UNWANTED:
                    query = make_query([vectors[f"a {what}, skin tone"]], [vectors[tone]])
                    names = [shown(hit.picture.found.name) for hit in opened.search(query, K)]
                    right.append(np.mean([what in name for name in names]))
                    # "medium light" and "medium dark" are tones of their own.
                    of_tone = re.compile(f"(?<!medium ){tone}")
                    wrong.append(np.mean([bool(of_tone.search(name)) for name in names]))
            print(f"{share:5.2f}   {np.mean(right):6.3f}   {np.mean(wrong):8.3f}")


if __name__ == "__main__":
    main()
