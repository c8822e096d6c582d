"""The page of answers to questions: how many are right, by kind, and examples of either sort."""

from collections import Counter

import numpy as np

from vlrep_jax.report.markup import bar, esc, image, percent, write_page

EXAMPLES = 4  # of right and of wrong answers, each, of every kind


def write_answers(path, *, title, metrics, details, pictures):
    """Writes the results of an evaluation `answers` as one HTML file.

    Args:
      path: the file, replaced whole.
      title: what was evaluated.
      metrics, details: of `evals.evaluate_answers`.
      pictures: uint8[n, h, w, 3], of each question.
    """
    tiles = "".join(
        f"<div><strong>{percent(metrics[name])}</strong><span>{text}</span></div>"
        for name, text in (
            ("accuracy", f"right of {len(details['scores']):,} questions"),
            ("without_picture", "by the same model without the picture"),
            ("majority", "by the one answer that suits each kind best"),
        )
    )
    kinds = sorted(set(details["kinds"]))
    parts = [f"<h1>{esc(title)}</h1>", f'<div class="headline">{tiles}</div>']
    parts.append(_table(kinds, metrics))
    parts.append(
        "<h2>Examples</h2><p>Rows are taken at even distances through all right and all wrong "
        "answers of a kind: nobody picked them.</p>"
    )
    for kind in kinds:
        parts.append(_examples(kind, details, pictures))
    write_page(path, title, parts)


def write_all_answers(workdir, results, data):
    """A page for every evaluation that asks questions (see `panels_of`); returns their paths."""
    paths = []
    for name, result in results.items():
        if "questions" in result.details:
            paths.append(workdir / f"answers-{name}.html")
            write_answers(
                paths[-1],
                title=f"{workdir.name}: answers on {name}",
                metrics=result.metrics,
                details=result.details,
                pictures=data[name].pictures(),
            )
    return paths


def _table(kinds, metrics):
    rows = "".join(
        f'<tr><td class="name">{esc(kind)}<td class="n">{metrics[f"{kind}/questions"]:,.0f}'
        f'<td class="n">{percent(metrics[f"{kind}/accuracy"])}'
        f'<td class="bar">{bar(metrics[f"{kind}/accuracy"], metrics[f"{kind}/majority"])}'
        f'<td class="n">{percent(metrics[f"{kind}/without_picture"])}'
        f'<td class="n">{percent(metrics[f"{kind}/majority"])}</tr>'
        for kind in kinds
    )
    return (
        '<div class="card"><table><thead><tr><th>kind<th class="n">questions<th class="n">right'
        '<th><th class="n">without the picture<th class="n">majority answer</tr></thead><tbody>'
        f'{rows}</tbody></table></div><p class="sub"><span class="key"></span>marks the majority '
        "answer.</p>"
    )


def _examples(kind, details, pictures):
    own = np.flatnonzero([one == kind for one in details["kinds"]])
    scores = details["scores"][own]
    parts = [f"<h3>{esc(kind)}</h3>"]
    for verdict, rows in (("right", own[scores > 0]), ("wrong", own[scores == 0])):
        if len(rows):
            shown = rows[np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(int)]
            cards = "".join(_card(row, details, pictures) for row in shown)
            parts.append(
                f'<p class="sub">{verdict}: {len(rows):,}</p><div class="sheet">{cards}</div>'
            )
    return "\n".join(parts)


def _card(row, details, pictures):
    question, chosen = details["questions"][row], details["chosen"][row]
    ((wanted, _),) = Counter(details["answers"][row]).most_common(1)
    lines = [f"<p>{esc(question)}</p>"]
    if details["scores"][row] > 0:
        lines.append(f'<p class="text"><b>{esc(chosen)}</b></p>')
    else:
        lines.append(f'<p class="image"><b>{esc(chosen)}</b> <small>not {esc(wanted)}</small></p>')
    lines.append(
        f"<p><small>{percent(details['confidence'][row])} sure; without the picture: "
        f"{esc(details['blank'][row])}</small></p>"
    )
    return f'<figure class="card">{image(pictures[row], question)}{"".join(lines)}</figure>'
