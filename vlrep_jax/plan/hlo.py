"""Reads the text of a compiled XLA program: cycles and collectives, loops counted as they run.

XLA's own `cost_analysis` counts the body of a loop once, and says nothing of collectives. The TPU
compiler writes its estimate of cycles beside each operation; here every operation is weighted by
the trip counts of the loops around it. What the estimate leaves out: collectives, waiting for
copies between memories, and custom kernels.
"""

import math
import re
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

# Types that are not here (tokens, packed 4-bit integers) take no room worth counting.
_ELEMENT_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
# The first word before a parenthesis; in shapes those stand behind a letter, as in T(8,128).
_OPCODE = re.compile(r"(?<=[\])}]) ([a-z][a-z0-9\-]*)\(")
_NAMES = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GROUP = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([0-9,]*)\}")
_IOTA = r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?"
_IOTA_GROUPS = re.compile(r"replica_groups=\[[0-9]+,([0-9]+)\]<=" + _IOTA)
_MESH_GROUPS = re.compile(
    rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? \{{([^}}]*)\}}"
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')


class Instruction(NamedTuple):
    """One line of the program: `shape` and `rest` are its text before and after the opcode."""

    name: str
    opcode: str
    shape: str
    rest: str

    @property
    def cycles(self) -> int:
        """The backend's estimate for one execution; 0 where it gives none."""
        found = _CYCLES.search(self.rest)
        return int(found[1]) if found else 0

    @property
    def op_name(self) -> str:
        """Where it comes from in the traced program, such as `jit(step)/.../dot_general`."""
        found = _OP_NAME.search(self.rest)
        return found[1] if found else self.name

    @property
    def operands(self) -> list[str]:
        """Names of the instructions it takes."""
        return _NAMES.findall(self.rest.split(")", 1)[0])

    def called(self, attribute: str) -> list[str]:
        """Names of the computations in an attribute, such as `body`."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
        return _NAMES.findall(found[1]) if found else []


class Program(NamedTuple):
    """Computations by name, each a list of instructions, and the name of the first to run.

    named: the same instructions by (computation, name).
    """

    computations: dict[str, list[Instruction]]
    entry: str
    named: dict[tuple[str, str], Instruction]

    def operands(self, computation: str, instruction: Instruction) -> list[Instruction]:
        """The instructions whose results an instruction of this computation takes."""
        found = (self.named.get((computation, name)) for name in instruction.operands)
        return [operand for operand in found if operand is not None]


class Collective(NamedTuple):
    """A collective as often as one execution of the program runs it.

    kind: an entry of COLLECTIVES. times: executions. bytes: of the whole array in one of them, on
    one device: what a gather returns, what a reduction takes. group: positions of the devices of
    the first group that takes part (of a permutation: the first pair); () for all. op_name: see
    `Instruction`.
    """

    kind: str
    times: int
    bytes: int
    group: tuple[int, ...]
    op_name: str


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`.

    Raises:
      ValueError: the text is none.
    """
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations[found[2]] = []
            entry = found[2] if found[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            shape, opcode, rest = _OPCODE.split(found[2], maxsplit=1)
            current.append(Instruction(found[1], opcode, shape, rest))
    if entry is None:
        raise ValueError("This is not the text of a compiled program: it has no ENTRY.")
    named = {(name, i.name): i for name, body in computations.items() for i in body}
    return Program(computations, entry, named)


def executed(program: Program) -> list[tuple[Instruction, int, str]]:
    """[(instruction, times one execution runs it, its computation)], those of fusions left out.

    Of a conditional's branches only the one with the most cycles counts, or the most collectives.
    """
    return list(_executed(program, program.entry, 1))


def total_cycles(program: Program) -> int:
    """The backend's estimated cycles of one execution."""
    return sum(times * instruction.cycles for instruction, times, _ in executed(program))


def cycles_by_operation(program: Program) -> dict[str, int]:
    """Estimated cycles by where they come from in the traced program (`op_name`), most first."""
    cycles = {}
    for instruction, times, _ in executed(program):
        if instruction.cycles:
            name = instruction.op_name
            cycles[name] = cycles.get(name, 0) + times * instruction.cycles
    return dict(sorted(cycles.items(), key=lambda item: -item[1]))


def collectives(program: Program) -> list[Collective]:
    """The collectives of one execution, in program order."""
    found = []
    for instruction, times, computation in executed(program):
        kind = _collective_kind(instruction.opcode)
        if instruction.opcode == "fusion":
            kind, instruction, computation = _fused_collective(program, instruction)
        if kind is None:
            continue
        size = _bytes(instruction.shape)
        if instruction.opcode.endswith("-done"):  # the start knows what goes in, and where
            (instruction,) = program.operands(computation, instruction)
        operands = program.operands(computation, instruction)
        size = max(size, sum(_bytes(operand.shape) for operand in operands))
        group = _group(instruction)
        if len(group) != 1:  # alone, a device sends nothing
            found.append(Collective(kind, times, size, group, instruction.op_name))
    return found


def _executed(program, computation, times):
    for instruction in program.computations[computation]:
        yield instruction, times, computation
        if instruction.opcode == "while":
            trips = _trip_count(program, instruction)
            for body in instruction.called("body"):
                yield from _executed(program, body, times * trips)
        elif instruction.opcode == "conditional":
            yield from max(
                (list(_executed(program, name, times)) for name in _branches(instruction)),
                key=_weight,
                default=(),
            )
        elif instruction.opcode in ("call", "async-start"):
            for name in instruction.called("to_apply") or instruction.called("calls"):
                yield from _executed(program, name, times)


def _weight(branch):
    collective = sum(n for inner, n, _ in branch if _collective_kind(inner.opcode))
    return sum(n * inner.cycles for inner, n, _ in branch), collective


def _branches(conditional):
    named = ("branch_computations", "true_computation", "false_computation")
    return [name for attribute in named for name in conditional.called(attribute)]


def _trip_count(program, loop):
    """How often a loop runs: jax counts up from 0 to a constant, which the condition holds."""
    if known := _TRIPS.search(loop.rest):
        return int(known[1])
    (condition,) = loop.called("condition")
    constants = [
        int(instruction.rest.split(")")[0])
        for instruction in program.computations[condition]
        if instruction.opcode == "constant" and instruction.shape.startswith(("s32", "u32", "s64"))
    ]
    # A loop of unknown length (a search, a random number's) counts once.
    return max(constants, default=1)


def _collective_kind(opcode):
    """The kind of a collective's opcode, or None. Of an asynchronous pair the end counts."""
    kind = opcode.removesuffix("-done")
    return kind if kind in COLLECTIVES else None


def _fused_collective(program, fusion):
    """(kind, instruction, computation) of the collective that a fusion runs; Nones without one.

    A TPU's asynchronous collective repeats in every fusion it overlaps with; its start counts.
    """
    for name in fusion.called("calls"):
        overlaps = "async_collective" in name or "async-collective-done" in fusion.name
        for instruction in () if overlaps else program.computations[name]:
            kind = _collective_kind(instruction.opcode)
            if kind == "all-reduce" and "reduce-scatter" in name.replace("_", "-"):
                kind = "reduce-scatter"
            if kind is not None:
                return kind, instruction, name
    return None, None, None


def _group(collective):
    """The first of the groups of devices that a collective runs in, in each of three notations."""
    if found := _GROUP.search(collective.rest):
        return tuple(int(n) for n in found[1].split(",") if n)
    if found := _IOTA_GROUPS.search(collective.rest):
        return tuple(_iota(found[2], found[3]).reshape(-1, int(found[1]))[0].tolist())
    if found := _MESH_GROUPS.search(collective.rest):
        # A mesh by axes, perhaps of devices in another order, and the axes that a group spans.
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        size = math.prod(axes.values())
        devices = _iota(found[2] or str(size), found[3]).reshape(list(axes.values()))
        spanned = re.findall(r"'(\w+)'", found[4])
        first = tuple(slice(None if name in spanned else 1) for name in axes)
        return tuple(devices[first].ravel().tolist())
    return ()


def _iota(dims, axes):
    """0, 1, 2, ... counted over `dims`, whose axes are then put in the order of `axes`, if any."""
    dims = [int(n) for n in dims.split(",")]
    order = [int(n) for n in axes.split(",")] if axes else range(len(dims))
    return np.arange(math.prod(dims)).reshape(dims).transpose(order)


def dimensions(shape: str) -> list[int]:
    """Of the array in the text of a shape."""
    return [int(n) for n in _ARRAY.search(shape)[2].split(",") if n]


def _bytes(shape):
    """Bytes of all arrays in the text of a shape."""
    return sum(
        _ELEMENT_BYTES.get(dtype, 0) * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in _ARRAY.findall(shape)
    )
