"""Curves as inline SVG that takes its colours and font from the page around it."""

import io
import re

import numpy as np

from vlrep_jax.report.markup import esc

# Drawn in these, then replaced by the page's variables, so that one drawing suits light and dark.
COLOURS = {
    "#010101": "var(--muted)",
    "#020202": "var(--line)",
    "#030303": "var(--image)",
    "#040404": "var(--text)",
    "#050505": "var(--ink)",
}
MUTED, LINE, IMAGE, TEXT, INK = COLOURS
SIZE = 9  # points, of all text
POINTS = 400  # a curve with more is averaged in slices: nobody sees more, and the page stays small


def loss_curve(history):
    """Every metric whose name ends in `loss`, over steps; '' where there is none."""
    names = sorted({k for row in history for k in row if k == "loss" or k.endswith("/loss")})
    names.sort(key=lambda name: name != "train/loss")
    if not names:
        return ""
    figure, axes = _axes()
    for name, colour, style in zip(names, (INK, MUTED, MUTED), ("-", "-", ":"), strict=False):
        steps, values = _series(history, name)
        axes.plot(steps, values, style, color=colour, linewidth=1.6, label=name)
    if len(names) > 1:
        legend = axes.legend(frameon=False, fontsize=SIZE, labelcolor=MUTED)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a dollar sign in a name is no formula
    axes.set_xlabel("step", color=MUTED, fontsize=SIZE)
    return _svg(figure, "Loss over steps: " + ", ".join(names[:3]))


def recall_curve(history, prefix, ks, chance):
    """Recall@k of both directions over steps, with chance at the largest k; '' without data."""
    figure, axes = _axes()
    ends = []
    for k, width, alpha in zip(
        sorted(ks, reverse=True), (2, 1.4, 0.9), (1, 0.75, 0.6), strict=False
    ):
        last = []
        for direction, colour in (("image_to_text", IMAGE), ("text_to_image", TEXT)):
            steps, values = _series(history, f"{prefix}/{direction}_recall@{k}")
            if len(steps):
                marker = "o" if len(steps) < 15 else None
                style = dict(linewidth=width, alpha=alpha, marker=marker, markersize=2.5)
                axes.plot(steps, 100 * values, color=colour, **style)
                last.append((steps[-1], 100 * values[-1]))
        if last:
            ends.append((k, max(x for x, _ in last), float(np.mean([y for _, y in last]))))
    if not ends:
        return ""
    top = max(y for *_, y in ends)
    odds = 100 * np.mean([v for name, v in chance.items() if name.endswith(f"@{ends[0][0]}")])
    axes.axhline(odds, color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.15 * top, 1.5 * odds))
    for k, x, y in _apart(ends, 0.065 * axes.get_ylim()[1]):
        note = dict(xytext=(5, 0), textcoords="offset points", va="center", fontsize=SIZE)
        axes.annotate(f"@{k}", (x, y), color=MUTED, annotation_clip=False, **note)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_xlabel("step", color=MUTED, fontsize=SIZE)
    return _svg(figure, f"Recall over steps on {prefix}, both directions")


def _axes():
    # The figure is made without pyplot, which would keep global state and may want a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=SIZE, length=0, pad=5)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.locator_params(axis="y", nbins=5)
    axes.locator_params(axis="x", nbins=6, integer=True)
    return figure, axes


def _series(history, name):
    """Steps and values of one metric, averaged down to POINTS; infinities become gaps."""
    rows = [(row["step"], row[name]) for row in history if name in row]
    data = np.array(rows, np.float64).reshape(-1, 2)
    data[~np.isfinite(data)] = np.nan
    if len(data) > POINTS:
        data = np.array([part.mean(0) for part in np.array_split(data, POINTS)])
    return data[:, 0], data[:, 1]


def _apart(ends, gap):
    """The labels (k, x, y) from the top down, moved down where they would overlap."""
    placed = []
    for k, x, y in sorted(ends, key=lambda end: -end[2]):
        placed.append((k, x, min(y, placed[-1][2] - gap) if placed else y))
    return placed


def _svg(figure, label):
    """The figure as an <svg> element to stand in HTML, with `label` for screen readers."""
    import matplotlib

    buffer = io.StringIO()
    # Text stays text (the page's font), and equal curves give equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-z_]+\d+(\.\d+)*"', "", svg)  # figure_1 and so on, equal in every figure
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head).group()
    for drawn, variable in COLOURS.items():
        rest = rest.replace(drawn, variable)
    return f'<svg {box} role="img" aria-label="{esc(label)}">{rest}'
