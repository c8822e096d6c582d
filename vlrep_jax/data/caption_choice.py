"""Which caption of a sample a training step sees; `CAPTIONS` lists the choices.

Each is `(sample, rng) -> str`; the empty string counts as a bad sample.
"""

_TEMPLATES = (
    "{}",
    "{} emoji",
    "a picture of {}",
    "an icon of {}",
    "a drawing of {}",
    "the {} symbol",
    "a small picture of {}",
    "this is {}",
)


def first(sample, rng):
    """The first caption."""
    del rng
    return sample.captions[0] if sample.captions else ""


def random(sample, rng):
    """One of the captions, each as likely."""
    return sample.captions[rng.integers(len(sample.captions))] if sample.captions else ""


def emoji(sample, rng, *, plain_share=0.5, alias_share=0.25, group_share=0.15):
    """A name of an emoji in many wordings, for training only.

    Args:
        plain_share: how often the plain name stands alone, as evaluation has it.
        alias_share: how often, of the others, another name of the emoji is taken, if it has one.
        group_share: how often, of the others, the words of its Unicode group are appended.
    """
    name = first(sample, rng)
    plain, alias, group = rng.random(3) < (plain_share, alias_share, group_share)
    if plain or not name:
        return name
    aliases = sample.labels.get("aliases", ())
    if alias and aliases:
        name = aliases[rng.integers(len(aliases))]
    text = _TEMPLATES[rng.integers(len(_TEMPLATES))].format(name)
    if group and sample.labels.get("subgroup"):
        word = sample.labels["group" if rng.random() < 0.5 else "subgroup"]
        text = f"{text}, {word.replace('-', ' ').replace('&', 'and').lower()}"
    return text


CAPTIONS = {"first": first, "random": random, "emoji": emoji}
