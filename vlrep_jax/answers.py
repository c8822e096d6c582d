"""Answers to questions as VQA compares them (arXiv:1505.00468; its public evaluation code).

`normalize` and `accuracies` give what that code gives, its oddities included, so that figures can
stand beside published ones.
"""

import re
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = ("a", "an", "the")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_CONTRACTIONS = re.findall(
    r"\S+",
    """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've""",
)
# With any one of its apostrophes missing a word is taken for the contraction.
_COMPLETED = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS
    for place in range(len(word))
    if word[place] == "'"
} | {"somebody'd": "somebodyd"}
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # at most so many are taken out
_ENOUGH = 3  # annotators that make an answer right


def normalize(answer: str) -> str:
    """An answer without case, articles and punctuation, with digits for number words up to ten.

    >>> normalize("The two dogs, dont they?")
    "2 dogs don't they"
    """
    text = _on_one_line(answer)
    # A mark inside a word parts it; one beside a space, or any in a text with '1,000', vanishes.
    whole = _THOUSANDS.search(text) is not None
    kept = text
    for mark in _PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if whole or beside else " ")
    kept = _PERIOD.sub("", kept, count=_PERIODS)
    words = (_NUMBERS.get(word, word) for word in kept.lower().split())
    return " ".join(_COMPLETED.get(word, word) for word in words if word not in _ARTICLES)


def accuracies(answers: Sequence[str]) -> dict[str, float]:
    """The accuracy of every answer that an annotator gave, by its normalised text.

    An answer is right where three others gave it; the share of that is averaged over leaving each
    annotator out. Of ten, 1, 2, 3 and 4 who gave it make 0.3, 0.6, 0.9 and 1.

    Args:
      answers: of the annotators, ten in VQAv2.
    """
    counts = Counter(_compared(answers))
    people = len(answers)

    def accuracy(count):
        left = count * min((count - 1) / _ENOUGH, 1)  # where one who gave it is left out
        return (left + (people - count) * min(count / _ENOUGH, 1)) / people

    return {answer: accuracy(count) for answer, count in counts.items()}


def accuracy(given: str, answers: Sequence[str]) -> float:
    """The VQA accuracy of an answer, in [0, 1].

    Where all annotators agree to the letter, the answer is held against that as it stands: the
    original normalises only where they differ.
    """
    texts = [_on_one_line(answer) for answer in answers]
    given = _on_one_line(given) if len(set(texts)) == 1 else normalize(given)
    return accuracies(answers).get(given, 0.0)


def _compared(answers):
    texts = [_on_one_line(answer) for answer in answers]
    return texts if len(set(texts)) == 1 else [normalize(text) for text in texts]


def _on_one_line(text):
    return text.replace("\n", " ").replace("\t", " ").strip()
