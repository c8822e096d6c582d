"""What a record says of every array of a state, and how that is compared with what is there."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from vlrep_jax.checkpoint.files import Damaged
from vlrep_jax.fingerprint import on_host
from vlrep_jax.rules import path_of


def leaves_of(tree: Any, prints: dict[str, int]) -> dict[str, dict]:
    """{path: what a record says of a leaf} of a tree of arrays and its fingerprints."""
    return {
        path_of(path): {
            "fingerprint": prints[path_of(path)],
            "dtype": str(leaf.dtype),
            "shape": list(leaf.shape),
        }
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def host_fingerprints(tree: Any) -> dict[str, int]:
    """`fingerprints` of a tree of NumPy arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path): on_host(leaf) for path, leaf in leaves}


def compare(saved: dict[str, dict], found: dict[str, dict]) -> None:
    """Raises Damaged where leaves are not what a record says of them."""
    wrong = [path for path in sorted({*saved, *found}) if saved.get(path) != found.get(path)]
    if wrong:
        raise Damaged(f"{listing(wrong)} of {len(saved)} arrays changed since it was saved")


def check_like(saved: dict[str, dict], like: Any, where: Path) -> None:
    """Raises ValueError naming every leaf that a checkpoint has otherwise than is wanted.

    Orbax itself would cast another dtype without a word.
    """
    wanted = {
        path_of(path): (str(leaf.dtype), tuple(leaf.shape))
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    there = {path: (leaf["dtype"], tuple(leaf["shape"])) for path, leaf in saved.items()}
    differing = []
    for path in sorted({*wanted, *there}):
        old, new = there.get(path), wanted.get(path)
        if old != new:
            old, new = (f"{x[0]}{list(x[1])}" if x else "absent" for x in (old, new))
            differing.append(f"{path} is {old} there, {new} here")
    if differing:
        more = f"; and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise ValueError(
            f"{where} is of another model or optimizer: {'; '.join(differing[:8])}{more}. Use the "
            "config it was trained with; config.init_from takes over parameters alone."
        )


def listing(paths: Iterable[str]) -> str:
    """The first of some paths in words."""
    paths = sorted(paths)
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
