"""Which caption of a sample a training step sees; `CAPTIONS` lists the choices.

Each is `(sample, rng) -> str`; the empty string counts as a bad sample. The options of wording of
`first` and `random`: `clean`, True or the keywords of `caption_text.clean`; `max_words` and
`max_chars`, as of `caption_text.shorten`; `templates`, texts with one {} each, one of which is
drawn to hold the caption.
"""

from vlrep_jax.data import caption_text

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


def first(sample, rng, *, clean=False, max_words=0, max_chars=0, templates=()):
    """The first caption that is not blank, worded as the options say."""
    captions = not_blank(sample)
    return _worded(captions[0], rng, clean, max_words, max_chars, templates) if captions else ""


def random(sample, rng, *, clean=False, max_words=0, max_chars=0, templates=()):
    """One of the captions that are not blank, each as likely, worded as the options say."""
    captions = not_blank(sample)
    if not captions:
        return ""
    text = captions[rng.integers(len(captions))]
    return _worded(text, rng, clean, max_words, max_chars, templates)


def not_blank(sample):
    """The captions that hold more than white space."""
    return [text for text in sample.captions if text.strip()]


def _worded(text, rng, clean, max_words, max_chars, templates):
    if clean:
        text = caption_text.clean(text, **({} if clean is True else clean))
    text = caption_text.shorten(text, max_words=max_words, max_chars=max_chars)
    if templates and text:
        # Not str.format: a caption or template may hold other braces.
        text = templates[rng.integers(len(templates))].replace("{}", text, 1)
    return text


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


def of_source(source, caption):
    """The choice for a source's samples: a mixture's parts may have choices of their own.

    Args:
        source: an entry of SOURCES; one that has a method `caption_for(caption)` is asked.
        caption: the choice where none is the source's own.
    """
    own = getattr(source, "caption_for", None)
    return caption if own is None else own(caption)


def one_of_each(sample, rng, number):
    """The sample with one of its captions; over numbers 0, 1, ... of a draw, each comes once.

    Args:
        sample: of any number of captions; with m, number m gives the first of the draw again.
        rng: in the same state for every number of one draw.
        number: of the caption within the draw.
    """
    captions = not_blank(sample)
    if not captions:
        return sample
    turn = rng.permutation(len(captions))
    return sample._replace(captions=(captions[turn[number % len(captions)]],))
