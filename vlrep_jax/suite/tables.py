"""A comparison as a table for people and as JSON for programs."""

import json
import os
from pathlib import Path

from vlrep_jax.suite.comparing import Comparison
from vlrep_jax.suite.plots import plot

_TITLES = {
    "zero_shot": "zero-shot",
    "linear_probe": "linear probe",
    "knn": "k-NN",
    "few_shot": "few-shot",
}
_METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "gap": "gap (top-1 lost)",
    "ece": "ECE",
    "confidence": "mean confidence",
}


def write(comparison: Comparison, out: str | Path) -> list[Path]:
    """Writes compare.json, compare.md and compare.png into a directory, in place of older ones."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    held = {**comparison.about, "models": comparison.models}
    texts = {
        "compare.json": json.dumps(held, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "compare.md": markdown(comparison),
    }
    for name, text in texts.items():
        part = out / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, out / name)
    part = out / ".compare.part.png"
    plot(comparison, part)
    os.replace(part, out / "compare.png")
    return [out / name for name in (*texts, "compare.png")]


def rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """(what was measured, its value of each model), in percent but for median ranks.

    First, what always giving the commonest class would score.
    """
    found = {}
    for split, share in comparison.about["commonest"].items():
        shifted = ", shifted" if split == "shifted" else ""
        found[f"commonest class, top-1{shifted}"] = [f"{100 * share:.1f}"] * len(comparison.models)
    for place, model in enumerate(comparison.models):
        for suite, metrics in model["metrics"].items():
            for name, value in metrics.items():
                if not name.endswith("_std"):
                    text = _number(name, value, metrics.get(f"{name}_std"))
                    blank = [""] * len(comparison.models)
                    found.setdefault(_label(suite, name), blank)[place] = text
    return list(found.items())


def table(comparison: Comparison) -> str:
    """For a terminal."""
    names = [model["name"] for model in comparison.models]
    lines = [("", names), *rows(comparison)]
    first = max(len(label) for label, _ in lines)
    widths = [max(len(values[i]) for _, values in lines) for i in range(len(names))]
    return "\n".join(
        f"{label:{first}}  " + "  ".join(f"{v:>{w}}" for v, w in zip(values, widths, strict=True))
        for label, values in lines
    )


def markdown(comparison: Comparison) -> str:
    """The same table, and a line on what it was measured on."""
    about, models = comparison.about, comparison.models
    counts = ", ".join(f"{count:,} {split}" for split, count in about["pictures"].items())
    head = f"Pictures of `{about['data']}`"
    head += f", shifted of `{about['shifted']}`" if about["shifted"] else ""
    lines = [f"{head}: {counts}. Percent, but for ranks.", ""]
    lines.append("| | " + " | ".join(_cell(model["name"]) for model in models) + " |")
    lines.append("|---" * (len(models) + 1) + "|")
    lines += [f"| {label} | {' | '.join(values)} |" for label, values in rows(comparison)]
    return "\n".join([*lines, "", "![](compare.png)", ""])


def _cell(text):
    return text.replace("|", "\\|")


def _label(suite, name):
    shifted = name.startswith("shifted_")
    name = name.removeprefix("shifted_")
    if suite == "few_shot":
        name = f"{name.removesuffix('_shot')} a class, top-1"
    name = _METRICS.get(name, name.replace("_", " ").replace("recall@", "R@"))
    title = _TITLES.get(suite, suite)
    return f"{title}, {name}" + (", shifted" if shifted else "")


def _number(name, value, spread):
    if name.endswith("_rank"):
        return f"{value:g}"
    return f"{100 * value:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")
