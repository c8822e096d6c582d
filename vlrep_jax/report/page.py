"""The report page: its frame, numbers, tables and setup. Retrieved cases are in cases.py."""

import json

import numpy as np

from vlrep_jax.report.cases import retrieved_cases
from vlrep_jax.report.curves import loss_curve, recall_curve
from vlrep_jax.report.markup import bar, duration, esc, percent, write_page

CLASSES = 20  # rows of a class table before the fold
DIRECTIONS = {
    "text_to_image": ("text", "Text → image", "A caption looks for its picture among {n}"),
    "image_to_text": ("image", "Image → text", "A picture looks for its caption among {m}"),
}


def write_report(
    path, *, title, config, versions, history, retrieval, zero_shot, timing, goodput=None
):
    """Writes a run's report as one HTML file that loads nothing from elsewhere.

    Args:
      path: the file, replaced whole.
      title: what was run.
      config: the resolved config, nested plain dicts.
      versions: {package: version}.
      history: the rows of metrics.jsonl, as `metrics.read` gives them. A row of step 0 is the
        state before training.
      retrieval: a `RetrievalPanel`, or None.
      zero_shot: {class set: `ZeroShotPanel`}, empty for none.
      timing: {what: seconds}, parts of the wall time that do not overlap.
      goodput: share of that time in which steps ran that count, or None.
    """
    steps = max((row["step"] for row in history), default=0)
    facts = [f"{steps:,} steps"] if history else []
    facts += [duration(sum(timing.values()))] if timing else []
    parts = [f"<h1>{esc(title)}</h1>", f'<p class="sub">{esc(" · ".join(facts))}</p>']
    parts += [_headline(history, retrieval, zero_shot), _recalls(history, retrieval)]
    parts += [
        _curves(history, retrieval),
        "" if retrieval is None else retrieved_cases(retrieval),
        _zero_shot(zero_shot),
    ]
    parts += [_timing(timing, goodput), _setup(config, versions)]
    write_page(path, title, parts)


def _headline(history, retrieval, zero_shot):
    tiles = []
    if retrieval is not None:
        k = max(_depths(retrieval))
        names = [f"{direction}_recall@{k}" for direction in DIRECTIONS]
        after = [_ends(history, f"{retrieval.name}/{name}")[1] for name in names]
        if None not in after:
            odds = np.mean([retrieval.chance[name] for name in names])
            text = (
                f"recall@{k} on {retrieval.name}, mean of both directions; chance {percent(odds)}"
            )
            tiles.append((percent(np.mean(after)), text))
    for name, panel in zero_shot.items():
        score = _zero_shot_scores(panel)
        text = f"zero-shot {_title(name)}, {score['classes']} classes; the commonest class alone "
        tiles.append((percent(score["top1"]), text + percent(score["majority"])))
    cells = "".join(f"<div><strong>{a}</strong><span>{esc(b)}</span></div>" for a, b in tiles)
    return f'<div class="headline">{cells}</div>' if cells else ""


def _recalls(history, panel):
    if panel is None:
        return ""
    cards = []
    counts = dict(n=f"{len(panel.pictures):,}", m=f"{len(panel.captions):,}")
    for direction, (css, heading, text) in DIRECTIONS.items():
        rows = []
        for k in _depths(panel):
            name = f"{direction}_recall@{k}"
            before, after = _ends(history, f"{panel.name}/{name}")
            if after is None:
                continue
            odds = panel.chance[name]
            notes = [f"chance {percent(odds)}"]
            notes += [f"before training {percent(before)}"] if before is not None else []
            rows.append(
                f'<div class="recall"><span>@{k}</span>{bar(after, odds)}'
                f'<b class="tabular">{percent(after)}</b><small>{" · ".join(notes)}</small></div>'
            )
        _, rank = _ends(history, f"{panel.name}/{direction}_median_rank")
        foot = "" if rank is None else f" · median rank {rank:,g}"
        cards.append(
            f'<div class="card {css}"><h3 class="{css}">{heading}</h3>'
            f'<p>{text.format(**counts)}{foot}</p><div style="color:var(--ink)">'
            f"{''.join(rows) or '<p>Not in the history.</p>'}</div></div>"
        )
    return (
        f'<div class="columns">{"".join(cards)}</div><p class="sub" style="margin-top:.6rem">'
        f"Recall@k on {esc(panel.name)}: the share found among the first k. "
        '<span class="key"></span>marks chance.</p>'
    )


def _curves(history, panel):
    loss = loss_curve(history)
    recall = (
        "" if panel is None else recall_curve(history, panel.name, _depths(panel), panel.chance)
    )
    cards = [f'<div class="card"><h3>Loss</h3><p>Lower is better.</p>{loss}</div>'] if loss else []
    if recall:
        cards.append(
            '<div class="card"><h3>Recall@k</h3><p><span class="text">text → image</span>, '
            '<span class="image">image → text</span>; dotted: chance.</p>'
            f"{recall}</div>"
        )
    return f'<h2>Learning</h2><div class="columns">{"".join(cards)}</div>' if cards else ""


def _zero_shot(panels):
    if not panels:
        return ""
    parts = [
        "<h2>Zero-shot classification</h2><p>Each picture goes to the class whose name, put "
        "into the prompts, is nearest.</p>"
    ]
    for name, panel in panels.items():
        score = _zero_shot_scores(panel)
        known = panel.labels >= 0
        labels, guesses = panel.labels[known], panel.predictions[known, 0]
        order = sorted(
            (c for c in range(len(panel.class_names)) if (labels == c).any()),
            key=lambda c: (-panel.per_class[c], panel.class_names[c]),
        )
        rows = [_class_row(panel, c, labels, guesses) for c in order]
        head = (
            '<thead><tr><th>class<th class="n">pictures<th class="n">right<th>'
            '<th class="mistake">most often taken for</tr></thead>'
        )
        more = (
            ""
            if len(rows) <= CLASSES
            else (
                f'<details class="more"><summary>{len(rows) - CLASSES} more classes</summary>'
                f"<table>{''.join(rows[CLASSES:])}</table></details>"
            )
        )
        parts.append(
            f"<h3>{esc(_title(name))} <small>top-1 {percent(score['top1'])} · mean per class "
            f"{percent(score['mean_per_class'])} · chance {percent(score['chance'])} · always "
            f'the commonest class {percent(score["majority"])}</small></h3><div class="card">'
            f"<table>{head}<tbody>{''.join(rows[:CLASSES])}</tbody></table>{more}</div>"
        )
    return "\n".join(parts)


def _class_row(panel, c, labels, guesses):
    wrong = guesses[(labels == c) & (guesses != c)]
    mistake = ""
    if len(wrong):
        others, counts = np.unique(wrong, return_counts=True)
        mistake = f"{esc(panel.class_names[others[counts.argmax()]])} ({counts.max()})"
    accuracy = panel.per_class[c]
    return (
        f'<tr><td class="name">{esc(panel.class_names[c])}<td class="n">{(labels == c).sum():,}'
        f'<td class="n">{percent(accuracy)}<td class="bar">{bar(accuracy)}'
        f'<td class="mistake">{mistake}</tr>'
    )


def _zero_shot_scores(panel):
    labels = panel.labels[panel.labels >= 0]
    return dict(
        classes=len(panel.class_names),
        top1=np.mean(panel.predictions[panel.labels >= 0, 0] == labels),
        mean_per_class=np.nanmean(panel.per_class),
        chance=1 / len(panel.class_names),
        majority=np.bincount(labels).max() / len(labels),
    )


def _timing(timing, goodput):
    total = sum(timing.values())
    if not total:
        return ""
    share = "" if goodput is None else f" Goodput: {percent(goodput)} of it, in steps that count."
    parts = sorted(timing.items(), key=lambda part: -part[1])
    shades = [f"s{min(i, 5)}" for i in range(len(parts))]
    stack = "".join(
        f'<span class="{shade}" style="flex:{seconds:.4f} 0 0" title="{esc(name)}"></span>'
        for shade, (name, seconds) in zip(shades, parts, strict=True)
    )
    rows = "".join(
        f'<tr><td><span class="swatch {shade}"></span>{esc(name)}<td class="n">{duration(seconds)}'
        f'<td class="n">{percent(seconds / total)}</tr>'
        for shade, (name, seconds) in zip(shades, parts, strict=True)
    )
    return (
        f'<h2>Where the time went</h2><p>{duration(total)} in all.{share}</p><div class="card">'
        f'<div class="stack">{stack}</div><table>{rows}</table></div>'
    )


def _setup(config, versions):
    rows = "".join(f"<tr><td>{esc(k)}<td>{esc(v)}</tr>" for k, v in versions.items())
    text = json.dumps(config, indent=2, default=str, ensure_ascii=False)
    return (
        f'<h2>Setup</h2><div class="card"><table>{rows}</table>'
        f"<details><summary>Resolved config</summary><pre>{esc(text)}</pre></details></div>"
    )


def _title(name):
    return name.replace("_", " ")


def _depths(panel):
    """The ks of the panel's recalls, ascending."""
    return sorted({int(name.rpartition("@")[2]) for name in panel.chance})


def _ends(history, name):
    """A metric before training (None without a row of step 0) and at last (None without any)."""
    rows = [(row["step"], row[name]) for row in history if name in row]
    if not rows:
        return None, None
    before = rows[0][1] if rows[0][0] == 0 and len(rows) > 1 else None
    return before, rows[-1][1]
