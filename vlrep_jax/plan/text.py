"""How plans read on a terminal."""

from collections.abc import Sequence

from vlrep_jax.plan.estimate import Plan

GIB = 2**30


def page(plan: Plan, label: str) -> str:
    """A plan in full; `label` names the recipe."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    lines = [
        f"{label} on {plan.topology}: {plan.chips} x {plan.chip}, mesh {mesh}, "
        f"{plan.parameters:,} parameters, batch {plan.batch_size:,} "
        f"({plan.batch_size // plan.chips:,} a chip)",
        "",
        verdict(plan),
        "",
        *_rows(_memory(plan)),
        "",
        *_rows(_cost(plan)),
    ]
    if plan.collectives:
        lines += ["", *_collectives(plan)]
    if plan.largest_operations:
        lines += ["", "largest operations (of the estimated time)"]
        for each in plan.largest_operations:
            share, ms = each["share"], each["seconds"] * 1e3
            lines.append(f"  {ms:8.2f} ms {share:6.1%}  {each['operation']}")
    if plan.notes:
        lines += ["", *(f"Note: {note}" for note in plan.notes)]
    return "\n".join(lines)


def verdict(plan: Plan) -> str:
    """Fits or not, and by how much."""
    limit = size(plan.memory_bytes)
    if plan.fits:
        left = size(plan.memory_bytes - plan.peak_bytes)
        return f"FITS: peak {size(plan.peak_bytes)} of {limit} a chip, {left} to spare."
    return (
        f"DOES NOT FIT: {size(plan.peak_bytes)} needed of {limit} a chip, "
        f"{size(plan.excess_bytes)} too much."
    )


def table(plans: Sequence[tuple[str, Plan]]) -> str:
    """One row a plan, for comparison."""
    head = ["variant", "fits", "peak GiB", "temp GiB", "est ms", "+ coll. ms", "MFU", "samples/s"]
    rows = [head, *([label, *_cells(plan)] for label, plan in plans)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def size(count: float) -> str:
    """Bytes with a unit that suits them."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:.0f} B"


def _cells(plan):
    value = lambda x, form, scale=1: "-" if x is None else format(x * scale, form)  # noqa: E731
    return (
        "yes" if plan.fits else "no",
        value(plan.peak_bytes / GIB, ".2f"),
        value(plan.temp_bytes, ".2f", 1 / GIB),
        value(plan.estimated_step_seconds, ".1f", 1e3),
        value(plan.collective_seconds, ".1f", 1e3),
        value(plan.mfu, ".3f"),
        value(plan.samples_per_second, ",.0f"),
    )


def _rows(pairs):
    return [f"{name:22} {text}" for name, text in pairs]


def _memory(plan):
    yield "memory of a chip", size(plan.memory_bytes)
    if plan.argument_bytes is not None:
        yield "  arguments", f"{size(plan.argument_bytes)} (state and batch)"
        yield "  temporaries", size(plan.temp_bytes)
        yield "  peak", f"{size(plan.peak_bytes)} (what counts; not all of these live at once)"


def _cost(plan):
    yield "FLOPs a step", f"{plan.model_flops:.4g} of the model (3 x forward)"
    if plan.executed_flops is not None:
        ratio = plan.executed_flops / plan.model_flops
        yield "  executed", f"{plan.executed_flops:.4g} ({ratio:.2f} x)"
    if plan.estimated_step_seconds is None:
        return
    step, collective = plan.estimated_step_seconds, plan.collective_seconds
    slowest = (step + collective) / step
    yield (
        "time a step",
        f"{step * 1e3:.1f} ms est, at most {collective * 1e3:.1f} ms more for collectives",
    )
    yield "MFU", f"{plan.mfu:.3f} ({plan.mfu / slowest:.3f} if no collective is hidden)"
    yield "samples a second", f"{plan.samples_per_second:,.0f}"
    yield (
        f"{plan.batch_size * plan.steps:,} samples",
        f"{plan.training_hours:,.1f} hours, {plan.chip_hours:,.0f} chip-hours "
        f"({plan.chip_hours * slowest:,.0f} if no collective is hidden)",
    )


def _collectives(plan):
    yield "collectives a step, of one chip"
    for each in plan.collectives:
        took = "" if each["seconds"] is None else f"  {each['seconds'] * 1e3:8.2f} ms"
        yield f"  {each['kind']:20} {each['count']:5} x  {size(each['bytes']):>11}{took}"
