"""Guided pictures judged by a model that did not guide them, trained from another seed.

python benchmarks/guided_pictures.py --guide=runs/seed0 --judge=runs/seed1 --data_dir=data \
    --generator=runs/gan --out=guided

Generation: one picture for each of many prompts, half of them names of concepts that neither model
was trained on. The judge embeds each picture and ranks the prompt among all names of the split; its
top-10 share stands beside chance, that of the real pictures, that of the pictures that descent
began with, and the guide's own, which is no evidence: descent raised it.

Edits: real pictures changed from one name to another. The judge's cosine between the change of the
picture and that of the text is 0 for a change that means nothing to it; the margin says by how much
the new text fits better than the old one, before and after. The distance is root mean square, of 1.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from vlrep_jax import guidance, weights
from vlrep_jax.data.decoding import decode
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.guidance.commands import named_generator
from vlrep_jax.guidance.pictures import labelled, levels
from vlrep_jax.metrics import Progress
from vlrep_jax.whole import whole
from vlrep_jax.workdirs import write_json

BATCH = 32  # pictures guided at once
K = 10
SHOWN = 32  # of a contact sheet
EDITS = (
    ("red heart", "blue heart"),
    ("yellow heart", "green heart"),
    ("red circle", "blue circle"),
    ("green apple", "red apple"),
    ("grinning face", "crying face"),
    ("slightly smiling face", "angry face"),
    ("neutral face", "smiling face with heart-eyes"),
    ("person: light skin tone", "person: dark skin tone"),
    ("waving hand: medium skin tone", "waving hand: light skin tone"),
    ("man: dark skin tone", "man: light skin tone"),
    ("dog face", "wolf"),
    ("cat face", "tiger face"),
    ("house", "castle"),
    ("automobile", "taxi"),
    ("sun", "full moon"),
    ("deciduous tree", "evergreen tree"),
    ("flag of France", "flag of Ireland"),
    ("flag of Japan", "flag of China"),
    ("open book", "green book"),
    ("red rose", "sunflower"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--guide", action="append", required=True, help="model; again for several")
    parser.add_argument("--judge", required=True, help="model of another seed")
    parser.add_argument("--data_dir", required=True, help="of emoji_captions")
    parser.add_argument("--generator", default="laplacian", help="as of vlrep generate")
    parser.add_argument("--prompts", type=int, default=64, help="of each split")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--edit_steps", type=int, default=0, help="0 leaves edits out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="directory to write; not there yet")
    args = parser.parse_args()
    if args.judge in args.guide:
        parser.error("the judge must not be a guide")
    with whole(Path(args.out)) as part:
        part.mkdir()
        models = [weights.load(path) for path in args.guide]
        judge = weights.load(args.judge)
        splits = {split: names(args.data_dir, split) for split in ("unseen", "train")}
        found = {"options": vars(args)}
        for split, pictures in splits.items():
            found[split] = generation(models, judge, pictures, args, part / f"{split}.png")
            print(json.dumps({split: found[split]}), flush=True)
        if args.edit_steps:
            found["edits"] = edits(models, judge, splits, args, part / "edits.png")
            print(json.dumps({"edits": found["edits"]["means"]}), flush=True)
        write_json(part / "figures.json", found)


def names(data_dir, split):
    """{name: uint8[h, w, 3]} of Twemoji's pictures; of `train` as many as `unseen` has."""
    source = SOURCES["emoji_captions"](data_dir=data_dir, split=split)
    samples = source.__getitems__(range(len(source)))
    found = {s.captions[0]: s.image for s in samples if s.labels["artist"] == "twemoji"}
    return {name: decode(image) for name, image in found.items()}


def generation(models, judge, pictures, args, path):
    """Figures of one split, and a contact sheet."""
    candidates = list(pictures)
    rng = np.random.default_rng(args.seed)
    if len(candidates) > 352:  # as many as the other split has, so that chance is the same
        candidates = [candidates[i] for i in rng.permutation(len(candidates))[:352]]
    prompts = [candidates[i] for i in rng.permutation(len(candidates))[: args.prompts]]
    guides = guidance.Guide(models)
    generator = named_generator(args.generator, 0, guides)
    first, last = [], []
    progress = Progress(args.steps * -(-len(prompts) // BATCH))
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        full = part + part[:1] * (BATCH - len(part))  # one size compiles
        keys = jax.random.split(jax.random.fold_in(jax.random.key(args.seed), start))
        latent = generator.init(keys[0], full)
        done = args.steps * start // BATCH
        guided = guidance.guide(
            generator,
            latent,
            guides.toward(full),
            key=keys[1],
            steps=args.steps,
            on_step=lambda step, *_, done=done: progress.advance(done + step + 1),
        )
        first.extend(levels(guidance.decoded(generator, latent))[: len(part)])
        last.extend(levels(guided.images)[: len(part)])
    progress.close()
    real = [pictures[prompt] for prompt in prompts]
    shares = {
        "guided": top(judge, last, prompts, candidates),
        "before descent": top(judge, first, prompts, candidates),
        "real pictures": top(judge, real, prompts, candidates),
        "guided, by the guide itself": top(models[0], last, prompts, candidates),
    }
    ranks = ranked(judge, last, prompts, candidates)
    shown = np.linspace(0, len(prompts) - 1, min(len(prompts), SHOWN)).astype(int)
    labels = [f"{ranks[i]}: {prompts[i]}" for i in shown]
    labelled([last[i] for i in shown], labels, columns=8).save(path, optimize=True)
    return {
        "prompts": len(prompts),
        "candidates": len(candidates),
        "chance": round(K / len(candidates), 4),
        f"top-{K}": shares,
        "median rank": float(np.median(ranks)),
    }


def ranked(model, images, prompts, candidates):
    """Place of each picture's prompt among the candidates, from 1."""
    scores = model.encode_image(images) @ model.encode_text(candidates).T
    own = scores[np.arange(len(prompts)), [candidates.index(p) for p in prompts]]
    return (scores > own[:, None]).sum(axis=1) + 1


def top(model, images, prompts, candidates):
    """Share of pictures whose prompt is among the first K."""
    return round(float((ranked(model, images, prompts, candidates) <= K).mean()), 4)


def edits(models, judge, splits, args, path):
    """Figures of every edit and their means, and a contact sheet of before and after."""
    pictures = splits["train"] | splits["unseen"]
    guides, rows, shown, labels = guidance.Guide(models, guidance.EDIT_VIEWS), [], [], []
    wanted = [(source, target) for source, target in EDITS if source in pictures]
    progress = Progress(len(wanted), unit="edit")
    for i, (source, target) in enumerate(wanted):
        original = pictures[source]
        key = jax.random.fold_in(jax.random.key(args.seed), i)
        edited = guidance.edit(guides, original, source, target, key=key, steps=args.edit_steps)
        row = {
            "from": source,
            "to": target,
            **judged(judge, original, edited.image, source, target),
        }
        noise = np.random.default_rng(i).normal(0, row["distance"], original.shape) * 255
        noisy = np.uint8(np.clip(original + noise, 0, 255))
        row["cosine of noise"] = judged(judge, original, noisy, source, target)["cosine"]
        rows.append(row)
        shown += [original, edited.image]
        labels += [source, f"{row['cosine']:+.2f}: {target}"]
        progress.advance(i + 1)
    progress.close()
    labelled(shown, labels, columns=8).save(path, optimize=True)
    numbers = [name for name in rows[0] if name not in ("from", "to")]
    means = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in numbers}
    means["largest distance"] = max(row["distance"] for row in rows)
    means["new text fits better"] = [
        round(float(np.mean([row[f"margin {when}"] > 0 for row in rows])), 4)
        for when in ("before", "after")
    ]
    return {"edits": len(rows), "means": means, "rows": rows}


def judged(judge, original, edited, source, target):
    """What a judge says of an edit, and its distance."""
    image, text = judge.encode_image([original, edited]), judge.encode_text([source, target])
    change, step = image[1] - image[0], text[1] - text[0]
    cosine = change @ step / max(np.linalg.norm(change) * np.linalg.norm(step), 1e-9)
    distance = np.sqrt(((np.float64(edited) - original) ** 2).mean()) / 255
    values = {
        "cosine": cosine,
        "margin before": image[0] @ step,
        "margin after": image[1] @ step,
        "distance": distance,
    }
    return {name: round(float(value), 4) for name, value in values.items()}


if __name__ == "__main__":
    main()
