"""`vlrep vqa`: answers to a question about a picture, by any model that can be loaded."""

import json
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from vlrep_jax import models, weights
from vlrep_jax.answers import normalize
from vlrep_jax.data.decoding import BadImage
from vlrep_jax.evals.zero_shot import check_template, class_embeddings

SHOWN = 5  # answers in the table
TEMPLATES = ("{}", "{question} {}")


def answer(
    loaded: weights.Pretrained,
    image,
    question: str,
    answers: Sequence[str] = (),
    *,
    templates: Sequence[str] = TEMPLATES,
) -> list[tuple[str, float]]:
    """Answers with their scores, the best first.

    A model that was trained to answer (a FusionEncoder with answers) reads picture and question
    together; a score is then a probability of that answer alone. Any other ranks the answers by how
    near the picture is to each, put into prompts; scores are `Pretrained.scores`.

    Args:
      loaded: as `weights.load` gives it.
      image: a picture, as `Pretrained.encode_image` takes it.
      question: a text.
      answers: to choose among; empty for all that a trained model knows.
      templates: prompts with one `{}` for the answer, and `{question}` where they name it.

    Raises:
      BadImage: the picture cannot be decoded.
      ValueError: no question, no or double answers, or some that a trained model does not know.
    """
    if not question.strip():
        raise ValueError("The question is empty.")
    answers = [one.strip() for one in answers]
    if len(set(answers)) < len(answers) or not all(answers):
        raise ValueError(f"Answers {','.join(answers)!r}: they must differ, and none be empty.")
    known = getattr(loaded.model, "answers", ())
    if known:
        scores = _trained(loaded, image, question)
        answers, scores = _among(answers, known, scores) if answers else (known, scores)
    elif answers:
        for template in templates:
            check_template(template)
        prompts = [[_prompt(one, question, reply) for one in templates] for reply in answers]
        text = class_embeddings(loaded.encode_text, prompts, ("{}",))
        scores = loaded.scores(loaded.encode_image([image]), text)[0]
    else:
        raise ValueError(
            f"This model, a {type(loaded.model).__name__}, was not trained to answer: give answers "
            'to choose among, such as --answers="yes,no".'
        )
    best = np.argsort(-scores, kind="stable")
    return [(answers[i], float(scores[i])) for i in best]


def _prompt(template, question, reply):
    """A template with both in their places; braces within either are only text."""
    return reply.join(part.replace("{question}", question) for part in template.split("{}"))


def _trained(loaded, image, question):
    """The probability of each known answer, float32[a]."""
    if loaded.tokenizer is None:
        raise ValueError("This model's files hold no tokenizer, so no question can be read.")
    pixels = loaded.preprocess.normalize(loaded.preprocess(image))[None]
    tokens = loaded.tokenizer([question], models.input_sizes(loaded.model)[1])
    apply = jax.jit(partial(loaded.model.apply, method="answer"))
    logits = np.asarray(apply({"params": loaded.params}, pixels, tokens), np.float32)[0]
    return 1 / (1 + np.exp(-logits))


def _among(answers, known, scores):
    """Some of the known answers, as they were given, and their scores."""
    places = {normalize(one): place for place, one in enumerate(known)}
    unknown = [one for one in answers if normalize(one) not in places]
    if unknown:
        raise ValueError(
            f"This model does not know the answers {', '.join(unknown)}; it knows {len(known)}: "
            f"{', '.join(known[:40])}{', ...' if len(known) > 40 else ''}."
        )
    return answers, scores[[places[normalize(one)] for one in answers]]


def run(
    model: str,
    image: str,
    question: str,
    answers: Sequence[str] = (),
    *,
    templates: Sequence[str] = TEMPLATES,
    as_json: bool = False,
) -> None:
    """Prints the best answers, or one JSON object with all of them.

    Args:
      model: path, see `weights.load`.
      the others: as of `answer`.

    Raises:
      FileNotFoundError: no such model or picture.
      ValueError: the picture cannot be decoded; or as `answer`.
    """
    loaded = weights.load(model)
    try:
        found = answer(loaded, image, question, answers, templates=templates)
    except BadImage as error:
        raise ValueError(f"--image={image}: {error.why}.") from None
    except OSError as error:
        raise FileNotFoundError(f"--image={image}: {error.strerror}.") from None
    if as_json:
        scores = dict(found)
        print(json.dumps({"image": image, "question": question, "answers": scores}))
        return
    width = max(len(text) for text, _ in found[:SHOWN])
    for text, score in found[:SHOWN]:
        print(f"{text:{width}}  {100 * score:5.1f} %")
