"""A comparison as one picture: accuracies, few-shot curves, calibration, recall."""

from pathlib import Path

from vlrep_jax.suite.comparing import Comparison

# Okabe and Ito's, told apart by people who see fewer colours; models beyond them begin again.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_BARS = (("zero_shot", "zero-shot"), ("linear_probe", "linear probe"), ("knn", "k-NN"))
_INK, _LINE = "#444444", "#dddddd"


def plot(comparison: Comparison, path: str | Path) -> None:
    """Writes a PNG with a panel for each kind of suite that was run."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    models = comparison.models
    run = models[0]["metrics"].keys()
    panels = [
        panel
        for panel, suites in (
            (_accuracy, {name for name, _ in _BARS}),
            (_few_shot, {"few_shot"}),
            (_calibration, {"calibration"}),
            (_recall, {"retrieval"}),
        )
        if suites & run
    ]
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.5 * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for one, panel in zip(axes, panels, strict=False):
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(_LINE)
        one.tick_params(colors=_INK, labelsize=8)
        one.grid(axis="y", color=_LINE, linewidth=0.6)
        one.set_axisbelow(True)
        panel(one, models)
    for one in axes[len(panels) :]:
        one.set_visible(False)
    handles = [
        Patch(color=COLOURS[i % len(COLOURS)], label=model["name"])
        for i, model in enumerate(models)
    ]
    legend = figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(models), 3),
        frameon=False,
        fontsize=9,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in a name is no formula
    figure.savefig(path, dpi=110)


def _accuracy(axes, models):
    """Top-1 of each classifier; hatched on the shifted set."""
    shown = [(suite, title) for suite, title in _BARS if suite in models[0]["metrics"]]
    has_shift = any("shifted_top1" in models[0]["metrics"][suite] for suite, _ in shown)
    wide = 0.8 / (len(models) * (1 + has_shift))
    for i, model in enumerate(models):
        colour = COLOURS[i % len(COLOURS)]
        for x, (suite, _) in enumerate(shown):
            metrics = model["metrics"][suite]
            names = ("top1", "shifted_top1") if has_shift else ("top1",)
            for j, name in enumerate(names):
                place = x - 0.4 + wide * (i * len(names) + j + 0.5)
                style = dict(color=colour) if not j else dict(hatch="////", edgecolor=colour)
                style |= {"facecolor": "white"} if j else {}
                axes.bar(place, 100 * metrics[name], 0.92 * wide, **style)
    axes.set_xticks(range(len(shown)), [title for _, title in shown])
    title = "top-1 accuracy, %" + (" (hatched: shifted set)" if has_shift else "")
    axes.set_title(title, fontsize=9, color=_INK)


def _few_shot(axes, models):
    """Accuracy over shots with one standard deviation; zero-shot as a dashed line."""
    for i, model in enumerate(models):
        metrics = model["metrics"]
        found = {
            int(name.removesuffix("_shot")): value
            for name, value in metrics["few_shot"].items()
            if name.endswith("_shot")
        }
        spread = [100 * metrics["few_shot"].get(f"{n}_shot_std", 0) for n in found]
        heights = [100 * value for value in found.values()]
        colour = COLOURS[i % len(COLOURS)]
        axes.errorbar(list(found), heights, spread, color=colour, marker="o", ms=3.5, capsize=2)
        if "zero_shot" in metrics:
            axes.axhline(100 * metrics["zero_shot"]["top1"], color=colour, lw=1, ls="--")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(found), [str(n) for n in found])
    axes.minorticks_off()
    axes.set_xlabel("training pictures a class", fontsize=8, color=_INK)
    note = " (dashed: zero-shot)" if "zero_shot" in models[0]["metrics"] else ""
    axes.set_title(f"few-shot linear probe, top-1, %{note}", fontsize=9, color=_INK)


def _calibration(axes, models):
    """Accuracy over confidence; the diagonal is a model that is right as often as it says."""
    axes.plot([0, 100], [0, 100], color=_INK, lw=0.8, ls=":")
    for i, model in enumerate(models):
        bins = model["details"]["calibration"]
        points = [
            (100 * x, 100 * y)
            for x, y in zip(bins["confidence"], bins["accuracy"], strict=True)
            if x is not None
        ]
        axes.plot(*zip(*points, strict=True), color=COLOURS[i % len(COLOURS)], marker="o", ms=3.5)
    axes.set_xlabel("confidence, %", fontsize=8, color=_INK)
    axes.set_title("calibration: accuracy, %, by confidence", fontsize=9, color=_INK)


def _recall(axes, models):
    """Recall@k; solid from image to text, dashed from text to image."""
    for i, model in enumerate(models):
        metrics = model["metrics"]["retrieval"]
        for direction, style in (("image_to_text", "-"), ("text_to_image", "--")):
            start = f"{direction}_recall@"
            found = {
                int(name.removeprefix(start)): 100 * value
                for name, value in metrics.items()
                if name.startswith(start)
            }
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(list(found), list(found.values()), style, color=colour, marker="o", ms=3.5)
    axes.set_xticks(list(found))
    axes.set_xlabel("k", fontsize=8, color=_INK)
    title = "recall@k, % (solid: image to text, dashed: text to image)"
    axes.set_title(title, fontsize=9, color=_INK)
