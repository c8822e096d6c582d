"""Several sources as one, each with its share of the stream."""

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial

import numpy as np

from vlrep_jax.build import check_options, check_types, plain
from vlrep_jax.data.caption_choice import CAPTIONS, of_source
from vlrep_jax.data.sources.sample import PICTURE_IDENTITY, shard_of
from vlrep_jax.data.sources.sections import open_section

_LOG = logging.getLogger(__name__)
_ENDLESS = 2**62


class Mixture:
    """Sources that take turns in the stream by their weights.

    Any stretch of the stream holds each part's share of it to within a few samples. A part begins
    its next epoch, in another order, when it has been seen whole, whatever the others have.

    Args:
        parts: name -> mapping of `source` (a section of SOURCES), `weight` (above 0, their sum
            does not matter), and `caption` (a section of CAPTIONS), where the part's is not
            `config.data.caption`. Keys are `part/key`; so are identities, but for those of a
            picture's bytes, which count across parts.

    Raises:
        ValueError: there is no part, or one of them is not as said.
    """

    def __init__(self, parts: Mapping[str, Mapping]):
        parts = plain(parts)
        if not parts:
            raise ValueError("A mixture needs parts: name -> {'source': ..., 'weight': ...}.")
        for name, part in parts.items():
            _check_part(name, part)
        self.names = tuple(parts)
        self._captions = {n: part["caption"] for n, part in parts.items() if part.get("caption")}
        self._parts = [_open_part(name, part["source"]) for name, part in parts.items()]
        weights = [Fraction(part["weight"]).limit_denominator(10**6) for part in parts.values()]
        scale = np.lcm.reduce([weight.denominator for weight in weights])
        self._weights = [int(weight * int(scale)) for weight in weights]
        self._ends = np.cumsum([len(part) for part in self._parts])
        for name, line in self._described():
            _LOG.info("mixture, part %s: %s", name, line)

    def _described(self):
        for name, part, weight in zip(self.names, self._parts, self._weights, strict=True):
            share = weight / sum(self._weights)
            yield (
                name,
                (
                    f"{len(part):,} samples, {share:.2%} of the stream, an epoch every "
                    f"{round(len(part) / share):,} samples"
                ),
            )

    @property
    def skipped(self):
        """What the parts left out, by part and reason."""
        return {
            f"{name}/{reason}": count
            for name, part in zip(self.names, self._parts, strict=True)
            for reason, count in getattr(part, "skipped", {}).items()
        }

    def __len__(self):
        return int(self._ends[-1])

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"Sample {indices.max()} of {len(self)} was asked for.")
        owners = np.searchsorted(self._ends, indices, side="right")
        found = [None] * len(indices)
        for number in np.unique(owners):
            places = np.flatnonzero(owners == number)
            part = self._parts[number]
            own = indices[places] - (self._ends[number] - len(part))
            for place, sample in zip(places, part.__getitems__(own.tolist()), strict=True):
                found[place] = _named(self.names[number], sample)
        return found

    def shard_of(self, index):
        """As the part says, behind its name."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self._parts[number]
        own = int(index - (self._ends[number] - len(part)))
        return f"{self.names[number]}/{shard_of(part, own, part[own])}".rstrip("/")

    def order(self, seed):
        """As `order.order`: the parts' own orders, interleaved by weight."""
        orders = [
            _part_order(name, part, seed)
            for name, part in zip(self.names, self._parts, strict=True)
        ]
        starts = [int(end) - len(part) for end, part in zip(self._ends, self._parts, strict=True)]
        import grain  # here, not above: workers need none, and it takes a second to import

        return grain.MapDataset.range(_ENDLESS).map(_Turns(orders, starts, self._weights))

    def parts_seen(self, position: int) -> dict[str, dict[str, float]]:
        """What the first `position` samples of the stream are.

        Returns:
            name -> `samples` of the part, and `epochs`, how often it was seen.
        """
        counts = _counts(position, self._weights)
        return {
            name: {"samples": count, "epochs": count / len(part)}
            for name, count, part in zip(self.names, counts, self._parts, strict=True)
        }

    def caption_for(self, caption: Callable) -> Callable:
        """The caption choice of the whole: each part's own, or the given one."""
        choices = {}
        for name, part in zip(self.names, self._parts, strict=True):
            own = dict(self._captions.get(name, {}))
            choice = partial(CAPTIONS[own.pop("name")], **own) if own else caption
            choices[name] = of_source(part, choice)
        return partial(_by_part, choices=choices)

    def fingerprint(self):
        """Stable hash of the parts, their weights and captions."""
        parts = [part.fingerprint() for part in self._parts]
        held = [self.names, parts, self._weights, self._captions]
        return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


class _Turns:
    """The sample at a position of the mixed stream."""

    def __init__(self, orders, starts, weights):
        self._orders, self._starts, self._weights = orders, starts, weights

    def __call__(self, position):
        before = _counts(position, self._weights)
        after = _counts(position + 1, self._weights)
        part = next(i for i, (b, a) in enumerate(zip(before, after, strict=True)) if a > b)
        return self._starts[part] + self._orders[part][before[part]]


def _counts(position, weights):
    """How many of the first `position` samples are each part's, by whole numbers alone.

    Of what the parts before have left, a part takes its share; what remains never shrinks as the
    position grows by one, so that exactly one part takes each sample.
    """
    counts, left, total = [], int(position), sum(weights)
    for weight in weights:
        rest = left * (total - weight) // total
        counts.append(left - rest)
        left, total = rest, total - weight
    return counts


def _check_part(name, part):
    keys = part.keys() if isinstance(part, dict) else ()
    if not {"source", "weight"} <= set(keys) <= {"source", "weight", "caption"}:
        raise ValueError(
            f"part {name!r} of a mixture has {sorted(keys)}; expected source, weight and, where it "
            "has its own, caption."
        )
    weight = part["weight"]
    if (
        not isinstance(weight, int | float)
        or isinstance(weight, bool)
        or not 1e-6 <= weight <= 1e12
    ):
        raise ValueError(f"part {name!r} of a mixture: weight={weight!r} must be a number above 0.")
    if not isinstance(part.get("caption") or {}, dict):
        raise ValueError(
            f"part {name!r} of a mixture: caption={part['caption']!r} must be a mapping such as "
            "{'name': 'first'}."
        )
    caption = dict(part.get("caption") or {"name": "first"})
    choice = CAPTIONS.get(caption.pop("name", None))
    if choice is None:
        raise ValueError(
            f"part {name!r} of a mixture: its caption is not one of {sorted(CAPTIONS)}."
        )
    label = f"part {name!r} of a mixture: its caption"
    check_options(choice, caption, label, bound=True)
    check_types(choice, caption, label)
    if "/" in name:
        raise ValueError(f"part {name!r} of a mixture: its name must not hold a '/'.")


def _open_part(name, section):
    try:
        source = open_section(section)
    except ValueError as error:
        raise ValueError(f"part {name!r} of a mixture: {error}") from None
    if not len(source):
        raise ValueError(f"part {name!r} of a mixture has no samples.")
    return source


def _named(name, sample):
    identity = sample.identity
    if identity and not identity.startswith(PICTURE_IDENTITY):
        identity = f"{name}/{identity}"
    return sample._replace(key=f"{name}/{sample.key}", identity=identity)


def _part_order(name, part, seed):
    from vlrep_jax.data.order import order

    try:
        return order(part, _part_seed(seed, name))
    except ValueError as error:  # such as lanes: the rows of a batch are not a part's alone
        raise ValueError(f"part {name!r} of a mixture: {error}") from None


def _part_seed(seed, name):
    # By name, so that a part's order is its own, whatever other parts there are.
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])


def _by_part(sample, rng, *, choices):
    name, _, key = sample.key.partition("/")
    return choices[name](sample._replace(key=key), rng)
