"""What a report shows of each evaluation, and which cases it picks. No drawing here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlrep_jax.evals.retrieval import captions_of, ranks, top_k

SHOWN = 5  # candidates in a row


@dataclass(frozen=True)
class Case:
    """One query and its first candidates, best first; `own` are the right ones."""

    query: int
    found: list[int]
    own: list[int]  # the nearest one first
    rank: int  # the place of own[0] among all candidates, 1 is first

    @property
    def missing(self):
        """The own candidate to show beside a row that has none; None where one was found."""
        return None if set(self.own) & set(self.found) else self.own[0]


@dataclass(frozen=True)
class RetrievalPanel:
    """Retrieval over n pictures and m captions; `of` makes one from an evaluation's details."""

    name: str  # the prefix of its metrics in the history, such as 'unseen'
    pictures: Sequence  # pictures[i] is uint8[h, w, 3]; only those shown are read
    captions: Sequence[str]
    image_of_caption: np.ndarray  # int32[m]
    own_score: np.ndarray  # float32[m], of each caption with its own picture
    rank_of_image: np.ndarray  # int32[n], 0 for a picture without a caption
    rank_of_caption: np.ndarray  # int32[m]
    captions_found: np.ndarray  # int32[n, 5], best first
    images_found: np.ndarray  # int32[m, 5]
    chance: dict[str, float]  # the recalls of a random order

    @classmethod
    def of(cls, name, details, pictures, captions, *, chunk=1024, mesh=None):
        """From the `details` of `evals.EVALS['retrieval']` over the same pictures and captions.

        Raises:
          ValueError: the number of pictures or captions differs from that of the embeddings.
        """
        image, text, owners = details["image"], details["text"], details["image_of_text"]
        if (len(pictures), len(captions)) != (len(image), len(text)):
            raise ValueError(
                f"{len(pictures)} pictures and {len(captions)} captions for {len(image)} and "
                f"{len(text)} embeddings; they must be the ones that were embedded."
            )
        options = dict(chunk=chunk, mesh=mesh)
        return cls(
            name=name,
            pictures=pictures,
            captions=captions,
            image_of_caption=owners,
            own_score=np.einsum("md,md->m", text, image[owners]),
            rank_of_image=ranks(image, text, captions_of(owners, len(image)), **options),
            rank_of_caption=ranks(text, image, owners, **options),
            captions_found=top_k(image, text, SHOWN, **options)[0],
            images_found=top_k(text, image, SHOWN, **options)[0],
            chance=details["chance"],
        )

    def caption_cases(self, right, wrong):
        """Captions as queries: (cases whose first picture is right, cases where it is wrong)."""

        def case(i):
            own = [int(self.image_of_caption[i])]
            return Case(i, self.images_found[i].tolist(), own, int(self.rank_of_caption[i]))

        return _pick(self.rank_of_caption, right, wrong, case)

    def image_cases(self, right, wrong):
        """Pictures as queries: (cases whose first caption is right, cases where it is wrong)."""

        def case(i):
            own = np.flatnonzero(self.image_of_caption == i)
            own = own[np.argsort(-self.own_score[own], kind="stable")].tolist()
            return Case(i, self.captions_found[i].tolist(), own, int(self.rank_of_image[i]))

        return _pick(self.rank_of_image, right, wrong, case)


@dataclass(frozen=True)
class ZeroShotPanel:
    """One class set's predictions: an entry of `evals.EVALS['zero_shot']`'s `details['sets']`."""

    class_names: Sequence[str]
    labels: np.ndarray  # int32[n], -1 for an image without a class
    predictions: np.ndarray  # int32[n, k], best first
    per_class: np.ndarray  # float64[c], NaN for a class without images


def _pick(rank, right, wrong, case):
    """Up to `right` cases of rank 1 and `wrong` of the others: the middles of equal slices of
    each, so that no one chose them and every part of the data is seen."""
    picked = []
    for indices, count in ((np.flatnonzero(rank == 1), right), (np.flatnonzero(rank > 1), wrong)):
        count = min(count, len(indices))
        middles = ((np.arange(count) + 0.5) * len(indices) / max(count, 1)).astype(int)
        picked.append([case(int(i)) for i in indices[middles]])
    return tuple(picked)


def panels_of(results, data):
    """(RetrievalPanel of the first retrieval or None, {class set: ZeroShotPanel}) of evaluations.

    Args:
      results: name -> Result of every evaluation.
      data: name -> what it was measured on, with `pictures()` and `captions`.
    """
    panel, class_sets = None, {}
    for name, result in results.items():
        details = result.details
        # The page ranks by embeddings, which is not the order of what is ranked again.
        if panel is None and "image_of_text" in details and "order" not in details:
            panel = RetrievalPanel.of(name, details, data[name].pictures(), data[name].captions)
        for class_set, found in details.get("sets", {}).items():
            class_sets[class_set] = ZeroShotPanel(**found)
    return panel, class_sets
