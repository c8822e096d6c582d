"""The report's retrieved cases: captions with pictures, and pictures with captions."""

import numpy as np

from vlrep_jax.report.markup import esc, image, ordinal, percent

CASES = 6  # rows of right and of wrong cases, each


def retrieved_cases(panel):
    """Both directions of a `RetrievalPanel`, right and wrong cases of each, as HTML."""
    n, m = len(panel.pictures), len(panel.captions)
    parts = [
        "<h2>From a caption to pictures</h2>"
        f"<p>The five nearest of {n:,} pictures, nearest first. "
        "A green frame is the right one; where it is not among the five, it follows after the "
        "dashed line with its place. Rows are taken at even distances through all right and all "
        "wrong cases: nobody picked them.</p>"
    ]
    for group, cases in zip(
        _groups(panel.rank_of_caption, "picture", "captions"),
        panel.caption_cases(CASES, CASES),
        strict=True,
    ):
        parts += [group, '<div class="cases">', *(_caption_case(panel, c) for c in cases), "</div>"]
    parts.append(
        "<h2>From a picture to captions</h2>"
        f"<p>The five nearest of {m:,} captions, nearest first; the right ones are marked.</p>"
    )
    for group, cases in zip(
        _groups(panel.rank_of_image, "caption", "pictures"),
        panel.image_cases(CASES, CASES),
        strict=True,
    ):
        parts += [
            group,
            '<div class="pictures">',
            *(_image_case(panel, c) for c in cases),
            "</div>",
        ]
    return "\n".join(parts)


def _groups(rank, candidate, queries):
    total = int((rank > 0).sum())
    right = int((rank == 1).sum()) / max(total, 1)
    for verdict, share in (("right", right), ("wrong", 1 - right)):
        yield (
            f"<h3>The first {candidate} is {verdict} "
            f"<small>{percent(share)} of {total:,} {queries}</small></h3>"
        )


def _caption_case(panel, case):
    figures = [_figure(panel, i, "own" if i in case.own else "") for i in case.found]
    if case.missing is None:
        figures.append('<span class="gap"></span>')
    else:
        figures.append(_figure(panel, case.missing, "late", ordinal(case.rank)))
    return (
        f'<div class="card case"><b dir="auto">{esc(panel.captions[case.query])}</b>'
        f'<div class="found">{"".join(figures)}</div></div>'
    )


def _figure(panel, index, css, note=""):
    # A picture's name for who cannot see it: one of its captions.
    captions = np.flatnonzero(panel.image_of_caption == index)
    alt = panel.captions[captions[0]] if len(captions) else f"picture {index}"
    note = f"<figcaption>{note}</figcaption>" if note else ""
    return f'<figure class="{css}">{image(panel.pictures[index], alt)}{note}</figure>'


def _image_case(panel, case):
    items = [
        f'<li dir="auto"{" class=own" if i in case.own else ""}>{esc(panel.captions[i])}</li>'
        for i in case.found
    ]
    if case.missing is not None:
        text = esc(panel.captions[case.missing])
        items.append(f'<li class="own late" data-place="{ordinal(case.rank)}">{text}</li>')
    alt = panel.captions[case.own[0]]
    return (
        f'<div class="card picture"><div class="query">{image(panel.pictures[case.query], alt)}'
        f"</div><ol>{''.join(items)}</ol></div>"
    )
