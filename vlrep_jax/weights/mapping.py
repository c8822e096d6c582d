"""Which tensor of another project holds which parameter of ours, as entries that read both ways."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Form(NamedTuple):
    """How an array of ours is stored by others.

    shape: theirs, given ours. view: our contiguous array -> the same memory in their shape, so that
    one assignment reads and the other writes.
    """

    shape: Callable[[Shape], Shape]
    view: Callable[[np.ndarray], np.ndarray]


def _reshaped(shape):
    return Form(shape, lambda ours: ours.reshape(shape(ours.shape)))


def _transposed(shape):
    """PyTorch's [outputs, inputs] of our [inputs..., outputs...]."""
    return Form(shape, lambda ours: ours.reshape(shape(ours.shape)[::-1]).T)


FORMS: dict[str, Form] = {
    "same": _reshaped(lambda s: s),
    "flat": _reshaped(lambda s: (math.prod(s),)),
    "row": _reshaped(lambda s: (1, *s)),
    # [in, out], or [in, heads, size] of a projection to heads.
    "linear": _transposed(lambda s: (math.prod(s[1:]), s[0])),
    # [heads, size, out] of a projection from heads.
    "from_heads": _transposed(lambda s: (s[-1], math.prod(s[:-1]))),
    # [height, width, in, out] of a convolution: PyTorch has [out, in, height, width].
    "conv": Form(
        lambda s: (s[3], s[2], s[0], s[1]),
        lambda ours: ours.transpose(3, 2, 0, 1),
    ),
}


@dataclass(frozen=True)
class Entry:
    """One tensor of theirs, or some of its rows, and where it is in our tree.

    Attributes:
      path: of our leaf, with slashes.
      key: their tensor's name.
      form: a name in FORMS.
      layer: row of our leaf, where it is the stack of all layers.
      part: (i, n), the i-th of n equal parts along their first dimension.
      row: index along their first dimension, where theirs is a stack of layers.
    """

    path: str
    key: str
    form: str = "same"
    layer: int | None = None
    part: tuple[int, int] = (0, 1)
    row: int | None = None

    def own_shape(self, leaf: Shape) -> Shape:
        """Of what this entry fills in a leaf of that shape."""
        return leaf if self.layer is None else leaf[1:]

    def their_shape(self, leaf: Shape, rows: int) -> Shape:
        """Of their whole tensor; `rows` is the depth of a stack of theirs."""
        shape = FORMS[self.form].shape(self.own_shape(leaf))
        if self.row is not None:
            return (rows, *shape)
        return (shape[0] * self.part[1], *shape[1:]) if self.part[1] > 1 else shape

    def view(self, leaf: np.ndarray) -> np.ndarray:
        """What this entry is of their tensor, as the memory of our whole leaf in their shape."""
        part = FORMS[self.form].view(leaf if self.layer is None else leaf[self.layer])
        return part if self.row is None else part[None]


def norm(path: str, key: str, layer=None) -> list[Entry]:
    """A layer norm (or the affine part of a batch norm) of PyTorch's."""
    return [
        Entry(f"{path}/scale", f"{key}.weight", layer=layer),
        Entry(f"{path}/bias", f"{key}.bias", layer=layer),
    ]


def linear(path: str, key: str, layer=None, *, form="linear", bias=True) -> list[Entry]:
    """A linear map of PyTorch's, `form` being that of its matrix."""
    entries = [Entry(f"{path}/kernel", f"{key}.weight", form, layer)]
    return entries + [Entry(f"{path}/bias", f"{key}.bias", "flat", layer)] * bias


def packed_heads(path: str, weight: str, bias: str, names: Iterable[str], layer=None):
    """Projections to heads that PyTorch keeps as one matrix, in the order of `names`."""
    names = list(names)
    return [
        Entry(f"{path}/{name}/{leaf}", key, form, layer, (i, len(names)))
        for i, name in enumerate(names)
        for leaf, key, form in (("kernel", weight, "linear"), ("bias", bias, "flat"))
    ]


def attention(path: str, key: str, layer=None) -> list[Entry]:
    """torch.nn.MultiheadAttention."""
    packed = packed_heads(
        path, f"{key}.in_proj_weight", f"{key}.in_proj_bias", ("query", "key", "value"), layer
    )
    return packed + linear(f"{path}/out", f"{key}.out_proj", layer, form="from_heads")


def block(path: str, key: str, layer: int) -> list[Entry]:
    """A layer of OpenAI's and OpenCLIP's transformers."""
    return [
        *norm(f"{path}/ln_1", f"{key}.ln_1", layer),
        *attention(f"{path}/attn", f"{key}.attn", layer),
        *norm(f"{path}/ln_2", f"{key}.ln_2", layer),
        *linear(f"{path}/mlp/fc1", f"{key}.mlp.c_fc", layer),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.c_proj", layer),
    ]


def repeated(depth: int, entries: Callable[[int], list[Entry]]) -> list[Entry]:
    """The entries of every layer."""
    return [entry for layer in range(depth) for entry in entries(layer)]


def below(entries: Iterable[Entry], prefix: str) -> list[Entry]:
    """The same entries for a model whose tensors are named below a prefix."""
    return [replace(entry, key=prefix + entry.key) for entry in entries]


def compare(
    entries: Iterable[Entry], leaves: Mapping[str, Shape], found: Mapping[str, Shape]
) -> list[str]:
    """What is wrong with their tensors, in words: every missing, left over and mis-shaped one.

    Args:
      entries: of the whole model.
      leaves: path -> shape of our parameters.
      found: key -> shape of their tensors, those left out that hold no parameters.
    """
    wanted = their_shapes(entries, leaves)
    problems = [f"{key} is missing" for key in wanted if key not in found]
    problems += [f"{key} is left over" for key in found if key not in wanted]
    problems += [
        f"{key} has shape {found[key]}, not {shape}"
        for key, shape in wanted.items()
        if key in found and tuple(found[key]) != shape
    ]
    return problems


def their_shapes(entries: Iterable[Entry], leaves: Mapping[str, Shape]) -> dict[str, Shape]:
    """key -> shape of every tensor of theirs, given the shapes of our leaves by path."""
    entries = list(entries)
    uncovered = leaves.keys() ^ {entry.path for entry in entries}
    assert not uncovered, f"no entry, or no parameter, for {sorted(uncovered)}"
    rows: dict[str, int] = {}
    for entry in entries:
        if entry.row is not None:
            rows[entry.key] = max(rows.get(entry.key, 0), entry.row + 1)
    return {
        entry.key: entry.their_shape(leaves[entry.path], rows.get(entry.key, 0))
        for entry in entries
    }


def theirs(entries: Iterable[Entry], leaves: Mapping[str, np.ndarray]):
    """Gives (key, tensor) of every tensor of theirs, made from our leaves one at a time."""
    for key, parts in by_key(entries).items():
        views = [entry.view(np.asarray(leaves[entry.path])) for entry in parts]
        yield key, np.ascontiguousarray(views[0] if len(views) == 1 else np.concatenate(views))


def by_key(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """key -> its entries, in the order of their rows of that tensor."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.key, []).append(entry)
    return {key: sorted(parts, key=lambda e: (e.row or 0, e.part)) for key, parts in found.items()}
