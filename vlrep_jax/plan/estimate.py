"""Compiles a recipe's train step for devices that are not here, and reads off what it will cost."""

import re
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import jax
from ml_collections import ConfigDict

from vlrep_jax import models
from vlrep_jax.build import plain
from vlrep_jax.experiment import make_experiment
from vlrep_jax.optim import parameter_count
from vlrep_jax.parallel import check_divides
from vlrep_jax.plan import flops, hlo
from vlrep_jax.plan.topology import Topology
from vlrep_jax.rules import match_rules

# How the compiler words a refusal: "... required for HLO temporaries (27.19G) exceeds available
# HBM (15.75G)", or "Used 16.90G of 15.75G hbm".
_REFUSALS = (
    r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
)
# Parts of an operation's name that say how it was traced, not where it stands in the model.
_WRAPPERS = {
    *("", "body", "checkpoint", "closed_call", "jit", "jvp", "layers", "rematted_computation"),
    *("shard_map", "transformer", "transpose", "vmap", "while"),
}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Plan:
    """What a step needs and costs. Bytes are of one chip; None is what cannot be known.

    What is None of a program that does not fit: everything the compiled program would tell.
    `docs/plan.md` explains every field; `to_json` has them as they stand.
    """

    topology: str
    chip: str
    chips: int
    mesh: dict[str, int]
    parameters: int
    batch_size: int
    steps: int
    fits: bool
    memory_bytes: int
    peak_bytes: int
    excess_bytes: int
    argument_bytes: int | None
    output_bytes: int | None
    temp_bytes: int | None
    model_flops: int
    executed_flops: int | None
    estimated_step_seconds: float | None
    collective_seconds: float | None
    mfu: float | None
    samples_per_second: float | None
    training_hours: float | None
    chip_hours: float | None
    collectives: list[dict] | None
    largest_operations: list[dict] | None
    compile_seconds: float
    notes: list[str]

    def to_json(self) -> dict:
        """Plain values by the documented keys."""
        return asdict(self)


def plan(config: ConfigDict, topology: Topology, say: Callable = lambda line: None) -> Plan:
    """Plans the train step that `vlrep train` would run on a topology.

    Args:
      config: of a recipe.
      topology: of `topology.find`.
      say: called with a line of progress, once the config is found good.

    Raises:
      ValueError: the config is wrong, or does not fit the number of devices.
    """
    notes = []
    if config.parallel.wiring != "jit":
        notes.append("The jit wiring is planned; pmap cannot be compiled ahead of time.")
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.parallel.wiring = "jit"
    count = len(topology.devices)
    check_divides(config.batch_size, count, config.chunks, config.matching_every)
    experiment = make_experiment(config, topology.devices)
    say(f"compiling for {topology.name}, which takes seconds to minutes")
    started = time.monotonic()
    program, memory, refusal = None, None, None
    try:
        lowered = experiment.step.lower(experiment.abstract_state, experiment.abstract_batch)
        with warnings.catch_warnings():
            # A program for devices that are elsewhere is written to the cache, but cannot be read.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
            compiled = lowered.compile()
        memory, program = compiled.memory_analysis(), hlo.parse(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:
        refusal = refused_bytes(str(error))
        if refusal is None:
            raise
    seconds = time.monotonic() - started
    limit = topology.memory_bytes if refusal is None else refusal[1]
    peak = _peak(memory, topology) if refusal is None else refusal[0]
    model_flops = training_flops(experiment) * config.batch_size
    return Plan(
        topology=topology.name,
        chip=topology.chip.name if topology.chip else "CPU",
        chips=count,
        mesh=dict(experiment.mesh.shape),
        parameters=parameter_count(experiment.abstract_state.params),
        batch_size=config.batch_size,
        steps=config.steps,
        fits=refusal is None and peak <= limit,
        memory_bytes=limit,
        peak_bytes=peak,
        excess_bytes=max(peak - limit, 0),
        argument_bytes=memory and memory.argument_size_in_bytes,
        output_bytes=memory and memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temp_bytes=memory and memory.temp_size_in_bytes,
        model_flops=model_flops,
        executed_flops=program and flops.of_program(program) * count,
        **_speed(program, topology, experiment, model_flops),
        collectives=program and collective_sums(program, topology, experiment.mesh),
        largest_operations=program and largest_operations(program, topology),
        compile_seconds=seconds,
        notes=[*notes, *_notes(program, memory, topology)],
    )


def refused_bytes(message: str) -> tuple[int, int] | None:
    """(bytes needed, bytes there are) of the compiler's refusal; None if it is another error."""
    for pattern in _REFUSALS:
        if found := re.search(pattern, message):
            needed, unit, there, its_unit = found.groups()
            return int(float(needed) * _UNITS[unit]), int(float(there) * _UNITS[its_unit])
    return None


def training_flops(experiment) -> int:
    """FLOPs of one pair in an ideal step: three times those of the towers forward.

    Nothing is computed twice, and the loss's own products are left out. A tower that is frozen
    whole counts once.
    """
    params, config = experiment.abstract_state.params, experiment.config
    frozen = match_rules([(rule, True) for rule in config.freeze], params, False)
    section = {"name": None, **plain(config.model)}
    # A kernel hides its products, and pads them; the model's are those of the plain form.
    section["towers"] = {**section.get("towers", {}), "attention": "xla"}
    model = models.create(**section)
    forward = flops.forward(model, models.image_shape(model), experiment.context_length)
    total = 0
    for side, value in forward.items():
        is_whole = side in frozen and all(jax.tree.leaves(frozen[side]))
        total += value * (1 if is_whole else 3)
    return total


def collective_sums(program: hlo.Program, topology: Topology, mesh) -> list[dict]:
    """The collectives of a step by kind: how many, of how many bytes in all, and their time."""
    sums = {}
    placed = topology._replace(devices=list(mesh.devices.flat))
    for each in hlo.collectives(program):
        entry = sums.setdefault(
            each.kind, {"kind": each.kind, "count": 0, "bytes": 0, "seconds": 0.0}
        )
        entry["count"] += each.times
        entry["bytes"] += each.times * each.bytes
        if topology.chip is None:
            entry["seconds"] = None
        else:
            entry["seconds"] += each.times * collective_seconds(each, placed)
    return sorted(sums.values(), key=lambda entry: -entry["bytes"])


def collective_seconds(collective: hlo.Collective, topology: Topology) -> float:
    """Time of one execution at the published bandwidth of the links, latency left out.

    Each of n devices must receive (n - 1) / n of a gathered array, over all links of the torus
    that lie in the group; a reduction that leaves its result everywhere needs twice that. A
    permutation sends all of it over one link.
    """
    if collective.kind == "collective-permute":
        return collective.bytes / topology.chip.link_bytes_per_second
    group = collective.group or range(len(topology.devices))
    if len(group) < 2:
        return 0.0
    payload = collective.bytes * (len(group) - 1) / len(group)
    times = 2 if collective.kind == "all-reduce" else 1
    return times * payload / topology.bytes_per_second(group)


def largest_operations(
    program: hlo.Program, topology: Topology, most: int = 10
) -> list[dict] | None:
    """The operations with the most cycles, by their place in the model."""
    if topology.chip is None:
        return None
    seconds, total = {}, max(hlo.total_cycles(program), 1)
    for name, cycles in hlo.cycles_by_operation(program).items():
        short = short_name(name)
        seconds[short] = seconds.get(short, 0) + cycles
    ranked = sorted(seconds.items(), key=lambda item: -item[1])[:most]
    return [
        {"operation": name, "seconds": n / topology.chip.clock_hz, "share": n / total}
        for name, n in ranked
    ]


def short_name(op_name: str) -> str:
    """An operation's place in the model and the pass it belongs to, from its name in the program.

    >>> short_name("jit(step)/transpose(jvp(M))/M.encode_text/text/while/body/mlp/fc1/dot_general")
    'text/mlp/fc1/dot_general, backward'
    """
    way = ""
    if "rematted_computation" in op_name:
        way = ", recomputed"
    elif "transpose(" in op_name:
        way = ", backward"
    elif "jvp(" in op_name:
        way = ", forward"
    parts = re.sub(r"\([^()]*(\([^()]*\))*[^()]*\)", "", op_name).split("/")
    kept = [part for part in parts if part not in _WRAPPERS and "." not in part]
    return "/".join(kept or [op_name.split(".")[0]]) + way


def _peak(memory, topology):
    """Bytes of one device at the worst moment."""
    if topology.chip is not None:
        return memory.peak_memory_in_bytes  # what the TPU compiler compares with the chip's memory
    # The CPU compiler's peak leaves temporaries out. All at once is what its runtime allocates.
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs


def _speed(program, topology, experiment, model_flops):
    """Times and what follows from them; all None where the compiler gives no cycles."""
    chip, config = topology.chip, experiment.config
    names = ("estimated_step_seconds", "collective_seconds", "mfu", "samples_per_second")
    names += ("training_hours", "chip_hours")
    if program is None or chip is None:
        return dict.fromkeys(names)
    step = hlo.total_cycles(program) / chip.clock_hz
    sums = collective_sums(program, topology, experiment.mesh)
    hours = step * config.steps / 3600
    count = len(topology.devices)
    values = (
        step,
        sum(entry["seconds"] for entry in sums),
        model_flops / (step * count * chip.peak_flops),
        config.batch_size / step,
        hours,
        hours * count,
    )
    return dict(zip(names, values, strict=True))


def _notes(program, memory, topology):
    notes = []
    if topology.chip is None:
        notes.append(
            "CPU devices: no estimate of time, for the compiler gives no cycles; memory is this "
            "machine's, split evenly, and peak is all of it at once."
        )
    elif program is not None:
        notes.append(
            "estimated_step_seconds sums the compiler's cycles over the clock. It leaves out "
            "collectives (collective_seconds, at published link bandwidth, if none is hidden "
            "behind computation), input data, copies between memories and custom kernels."
        )
        whole = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        if memory.peak_memory_in_bytes <= topology.memory_bytes < whole:
            notes.append(
                "The compiler accepts the program by its peak, but arguments and temporaries "
                "together are more than the chip has: leave a margin."
            )
        if not topology.chip.is_calibrated:
            notes.append(
                f"The clock of {topology.chip.name} is not calibrated: an 8192^3 product takes 1.4 "
                "times what its published peak allows. Compare plans with each other only."
            )
        kernels = sum(
            times
            for instruction, times, _ in hlo.executed(program)
            if instruction.opcode == "custom-call" and "tpu_custom_call" in instruction.rest
        )
        if kernels:
            notes.append(f"{kernels} executions of custom kernels count as no time at all.")
    return notes
