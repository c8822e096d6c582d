"""Changes of a recipe that trade memory for time: what to try, and which of them fit.

The levers are the policies in REMAT_POLICIES, `config.chunks`, the forms of a loss in LOSSES, and
the mesh axis that splits parameters.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping

from ml_collections import ConfigDict

from vlrep_jax import models
from vlrep_jax.build import plain
from vlrep_jax.losses import LOSSES
from vlrep_jax.models.transformer import REMAT_POLICIES
from vlrep_jax.plan.estimate import Plan, plan
from vlrep_jax.plan.text import size
from vlrep_jax.plan.topology import Topology

LEVERS = ("remat", "chunks", "fsdp", "loss")
Change = Mapping[str, object]  # lever -> value


def current(config: ConfigDict) -> dict[str, object]:
    """The values that a config gives the levers; of two towers the image's counts."""
    model = models.create(**{"name": None, **plain(config.model)})
    tower = getattr(model, "image", model)
    return {
        "remat": tower.remat,
        "chunks": config.chunks,
        "fsdp": config.parallel.fsdp,
        "loss": config.loss.name,
    }


def changed(config: ConfigDict, change: Change) -> ConfigDict:
    """The config with levers at other values."""
    made = config.copy_and_resolve_references()
    with made.unlocked():
        for lever, value in change.items():
            if lever == "remat":
                # `towers` reaches both towers, and the one of a shared encoder.
                model = plain(made.model)
                made.model = {**model, "towers": {**model.get("towers", {}), "remat": value}}
            elif lever == "chunks":
                made.chunks = value
            elif lever == "fsdp":
                made.parallel.update({"fsdp": value, "data": -1})
            elif lever == "loss":
                made.loss.name = value
            else:
                raise ValueError(f"Unknown lever {lever!r}; known: {', '.join(LEVERS)}.")
    return made.lock()


def label(change: Change) -> str:
    """How a change is called: 'remat=full, fsdp=16'."""
    return ", ".join(f"{lever}={value}" for lever, value in change.items()) or "the recipe"


def savers(config: ConfigDict, topology: Topology) -> dict[str, list]:
    """By lever, the values that need less memory than the config's, the mildest first."""
    now, count = current(config), len(topology.devices)
    rows = config.batch_size // count
    # Of policies it is known that 'none' keeps everything and 'full' least.
    policies = [name for name in REMAT_POLICIES if name not in ("none", now["remat"])]
    policies = [] if now["remat"] == "full" else sorted(policies, key="full".__eq__)
    splits = [n for n in (4, 16, 64, 256) if n <= count and count % n == 0] or [count]
    values = {
        "remat": policies,
        "chunks": [n for n in (4, 16) if n > now["chunks"] and rows % n == 0],
        "fsdp": [n for n in splits if n > now["fsdp"]],
        "loss": [name for name in _forms(now["loss"]) if name != now["loss"]],
    }
    if now["loss"].endswith("_ring"):
        values["loss"] = []
    return {lever: tried for lever, tried in values.items() if tried}


def advise(config: ConfigDict, topology: Topology, say: Callable) -> list[tuple[dict, Plan]]:
    """For a config that does not fit: each lever alone until it fits, then all at their strongest.

    Returns:
      [(change, its plan)] of all that were tried.
    """
    tried = []
    levers = savers(config, topology)
    for lever, values in levers.items():
        for value in values:
            tried += _planned(config, topology, [{lever: value}], say)
            if tried and tried[-1][0] == {lever: value} and tried[-1][1].fits:
                break
    if len(levers) > 1 and not any(each.fits for _, each in tried):
        strongest = {lever: values[-1] for lever, values in levers.items()}
        tried += _planned(config, topology, [strongest], say)
    return tried


def combinations(config: ConfigDict, topology: Topology) -> list[dict]:
    """Every combination of remat, chunks, FSDP and loss that a sweep compares."""
    now, count = current(config), len(topology.devices)
    rows = config.batch_size // count
    values = {
        "remat": list(REMAT_POLICIES),
        "chunks": [n for n in sorted({1, 4, now["chunks"]}) if rows % n == 0],
        "fsdp": sorted({1, min(16, count), now["fsdp"]}),
        "loss": _forms(now["loss"]),
    }
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]


def _forms(loss):
    """A loss gathered and as a ring, as far as there are both."""
    base = loss.removesuffix("_ring").removesuffix("_matrix")
    return [name for name in (base, f"{base}_ring") if name in LOSSES]


def sweep(config: ConfigDict, topology: Topology, say: Callable) -> list[tuple[dict, Plan]]:
    """[(change, its plan)] of all combinations, in order."""
    return list(_planned(config, topology, combinations(config, topology), say))


def best(plans: list[tuple[dict, Plan]]) -> tuple[dict, Plan] | None:
    """Of those that fit the fastest, collectives counted as if none were hidden; None if none fits.

    Where no time is known, the one that needs the least memory.
    """

    def cost(item):
        step, collective = item[1].estimated_step_seconds, item[1].collective_seconds
        return item[1].peak_bytes if step is None else step + collective

    return min((item for item in plans if item[1].fits), key=cost, default=None)


def planned(config: ConfigDict, topology: Topology, change: Change, say: Callable) -> Plan:
    """The plan of a changed config, with a line before and after: compiling takes minutes."""
    made = plan(changed(config, change), topology, lambda line: say(f"{label(change)}: {line}"))
    outcome = "fits" if made.fits else "does not fit"
    there, took = size(made.memory_bytes), f"{made.compile_seconds:.0f} s"
    say(f"{label(change)}: {outcome}, {size(made.peak_bytes)} of {there} (after {took})")
    return made


def to_stderr(line: str) -> None:
    """Shows progress."""
    print(line, file=sys.stderr, flush=True)


def _planned(config, topology, changes, say) -> Iterator[tuple[dict, Plan]]:
    for change in changes:
        try:
            yield change, planned(config, topology, change, say)
        except ValueError as error:  # such as a batch that cannot be split so; the others can
            say(f"{label(change)}: left out: {error}")
