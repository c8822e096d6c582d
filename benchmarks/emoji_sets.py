"""Emoji as data sets to evaluate on: folders of the nine Unicode groups, and a table of captions.

Run: python benchmarks/emoji_sets.py DATA_DIR OUT
DATA_DIR is where the quick start's pictures are, or are prepared (extra `quickstart`). Writes

OUT/twemoji/{train,test}/GROUP/*.png   Twemoji's pictures, test being concepts that no training saw
OUT/openmoji/test/GROUP/*.png          the same concepts by the other artist
OUT/captions.csv                       Twemoji's test pictures with their name and its aliases
OUT/templates.txt                      prompts for the groups
"""

import csv
import sys
from pathlib import Path

from vlrep_jax.data.sources import EmojiCaptions

# As of `zero_shot_sets.group`.
TEMPLATES = ("{}", "emoji, {}", "a picture, {}", "an icon, {}", "a drawing, {}")
SPLITS = {"unseen": "twemoji/test", "unseen_openmoji": "openmoji/test"}


def main(data_dir, out):
    """Writes the sets."""
    out = Path(out)
    train = EmojiCaptions(data_dir, "train")
    samples = of_groups(train)
    write([s for s in samples if s.labels["artist"] == "twemoji"], out / "twemoji/train")
    rows = []
    for split, place in SPLITS.items():
        source = EmojiCaptions(data_dir, split)
        samples = of_groups(source)
        paths = write(samples, out / place)
        if split == "unseen":
            for sample, path in zip(samples, paths, strict=True):
                texts = dict.fromkeys([*sample.captions, *sample.labels["aliases"]])
                rows += [(path.relative_to(out), text) for text in texts]
    with open(out / "captions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "caption"), *rows])
    (out / "templates.txt").write_text("\n".join(TEMPLATES) + "\n", encoding="utf-8")
    print(f"Wrote {out}: {len(rows)} captions of {len({path for path, _ in rows})} pictures.")


def of_groups(source):
    """The samples but for bare skin tones and hair styles, which are of no group."""
    samples = source.__getitems__(range(len(source)))
    return [sample for sample in samples if sample.labels["group"] != "Component"]


def write(samples, top):
    """Each picture in the folder of its group; returns the paths."""
    paths = []
    for sample in samples:
        group = sample.labels["group"].replace("&", "and").replace(" ", "_").lower()
        path = top / group / f"{sample.labels['codepoints'].replace(' ', '-')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.image)
        paths.append(path)
    return paths


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
