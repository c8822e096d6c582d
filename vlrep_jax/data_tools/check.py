"""`vlrep data check`: what a data set holds, as a page to read and files to use."""

import json
import os
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from vlrep_jax.data.decoding import BadImage, decode
from vlrep_jax.data_tools.check_page import NO_LOOKS, write_check_page
from vlrep_jax.data_tools.duplicates import groups_of_equal, groups_of_near
from vlrep_jax.data_tools.scan import Scan, said, scan
from vlrep_jax.metrics import Progress

SHEET, ALIKE, REPEATED = 48, 6, 10  # pictures, groups and captions that the page shows
SIDES = (32, 64, 128, 224, 256, 336, 384, 512, 768, 1024)
WORDS = (2, 4, 8, 16, 32, 64, 128)
PERCENTILES = {"min": 0, "p5": 5, "median": 50, "p95": 95, "max": 100}


def check(source, label: str, out: Path, *, workers: int, limit: int = 0, say=print) -> dict:
    """Scans a source and writes what it found to a directory.

    `report.html` to read; `check.json`, the figures; `bad.tsv`, key and reason of each sample that
    cannot be trained on; `duplicates.txt`, keys to leave out so that each file stays once (for
    `exclude` of the source `subset`); `near_duplicates.tsv`, key and number of its group.

    Args:
        source: an entry of SOURCES.
        label: what the page calls it.
        out: directory to make; what stands there is complete.
        workers: processes; 0 for none but this one.
        limit: samples to look at, a random part; 0 for all.
        say: told what was found.

    Returns:
        The figures of check.json.

    Raises:
        ValueError: the source is empty, or a number is not as said.
        FileExistsError: there is something at `out`.
    """
    if workers < 0 or limit < 0:
        raise ValueError(f"--workers={workers} and --limit={limit} must be 0 or more.")
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already; name another directory, or delete it.")
    if not len(source):
        left_out = getattr(source, "skipped", {})
        raise ValueError(f"{label} has no samples; left out by the index: {left_out or 'none'}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: what stands at `out` is complete.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as aside:
        folder = Path(aside) / "report"
        folder.mkdir()
        figures = _checked(source, label, folder, workers, limit)
        os.replace(folder, out)
    say(_lines(figures, out))
    return figures


def _checked(source, label, folder, workers, limit):
    """The figures of a scan, whose files are in the folder."""
    total = min(limit or len(source), len(source))
    progress = Progress(total, unit="sample")
    try:
        with open(folder / "bad.tsv", "w", encoding="utf-8", errors="replace") as bad:
            found = scan(
                source,
                workers=workers,
                limit=limit,
                clock=time.monotonic,
                progress=progress.advance,
                on_bad=lambda key, reason: bad.write(f"{_one_line(key)}\t{reason}\n"),
            )
    finally:
        progress.close()
    equal = groups_of_equal(found.rows["sha"])
    near = _alike(found.rows) if found.has_looks else None
    figures = summary(label, source, found, equal, near)
    extra = sorted(row for group in equal for row in group[1:])
    _write_keys(folder / "duplicates.txt", source, found, extra)
    alike = near[0] if near else []
    rows = [row for group in alike for row in group]
    numbers = [number for number, group in enumerate(alike) for _ in group]
    _write_keys(folder / "near_duplicates.tsv", source, found, rows, numbers)
    (folder / "check.json").write_text(
        json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace"
    )
    write_check_page(
        folder / "report.html",
        figures,
        sheet=_shown(source, found, _spread(np.arange(len(found.rows)), SHEET)),
        alike=[_shown(source, found, group[:8]) for group in _spread(alike, ALIKE)],
    )
    return figures


def _alike(rows):
    """`groups_of_near` of rows, but for groups of one file: those have a list of their own."""
    groups, crowded = groups_of_near(rows["look"])
    return [group for group in groups if len(np.unique(rows["sha"][group])) > 1], crowded


def summary(label, source, found: Scan, equal, near) -> dict:
    """The figures of a scan as JSON values.

    Args:
        equal: `groups_of_equal` of the files. near: `_alike` of the rows, or None.
    """
    rows, captions = found.rows, found.captions
    short = np.minimum(rows["width"], rows["height"])
    return {
        "source": label,
        "fingerprint": source.fingerprint(),
        "samples": found.size,
        "scanned": found.scanned,
        "good": len(rows),
        "bad": dict(found.bad.most_common()),
        "left_out_by_the_index": dict(getattr(source, "skipped", {})),
        "formats": dict(found.formats.most_common()),
        "width": _percentiles(rows["width"]),
        "height": _percentiles(rows["height"]),
        "short_side": {**_percentiles(short), "counts": _binned(short, SIDES)},
        "long_over_short": _percentiles(np.maximum(rows["width"], rows["height"]) / short),
        "file_bytes": _percentiles(rows["bytes"]),
        "captions": {
            "texts": len(captions),
            "different": len(np.unique(captions["text"])),
            "of_a_picture": _percentiles(rows["captions"]),
            "characters": _percentiles(captions["chars"]),
            "words": {
                **_percentiles(captions["words"]),
                "counts": _binned(captions["words"], WORDS),
            },
            "scripts": dict(found.scripts.most_common()),
            "most_repeated": _repeated(source, found),
        },
        "duplicates": {
            "files_there_before": int(sum(len(group) - 1 for group in equal)),
            "groups": len(equal),
            "alike_to_the_eye": None if near is None else sum(map(len, near[0])),
            "alike_groups": None if near is None else len(near[0]),
            "in_crowds": None if near is None else near[1],
        },
        "seconds": round(found.seconds, 2),
        "samples_per_second": round(found.scanned / max(found.seconds, 1e-9), 1),
        "workers": found.workers,
    }


def _percentiles(values):
    if not len(values):
        return {}
    marks = np.percentile(values, list(PERCENTILES.values()))
    return {name: round(float(mark), 3) for name, mark in zip(PERCENTILES, marks, strict=True)}


def _binned(values, edges):
    """{'< 32': n, '32 to 63': n, ...}; bins without a value are left out."""
    where, counts = np.unique(np.searchsorted(edges, values, side="right"), return_counts=True)
    return {_bin(edges, i): int(n) for i, n in zip(where, counts, strict=True)}


def _bin(edges, i):
    if i == 0:
        return f"under {edges[0]}"
    return f"{edges[-1]} and more" if i == len(edges) else f"{edges[i - 1]} to {edges[i] - 1}"


def _repeated(source, found):
    """[text, times] of the commonest captions that stand more than once."""
    rows = found.captions["row"]
    _, first, counts = np.unique(found.captions["text"], return_index=True, return_counts=True)
    order = [i for i in np.argsort(-counts, kind="stable")[:REPEATED] if counts[i] > 1]
    shown = []
    for i in order:
        place = first[i] - np.searchsorted(rows, rows[first[i]])
        (sample,) = _read(source, found, [rows[first[i]]])
        texts = said(sample)[place : place + 1]  # none where the data have changed meanwhile
        shown += [[text, int(counts[i])] for text in texts]
    return shown


def _spread(items, most):
    """At most so many items, at even distances: nobody picks them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).astype(int)]


def _shown(source, found, rows):
    """(picture, captions, key) of some rows."""
    shown = []
    for sample in _read(source, found, rows):
        try:
            shown.append((decode(sample.image), said(sample), sample.key))
        except BadImage:  # it was good in the scan: the data have changed meanwhile
            continue
    return shown


def _read(source, found, rows):
    return source.__getitems__([int(found.rows["index"][row]) for row in rows])


def _write_keys(path, source, found, rows, numbers=None, at_a_time=64):
    """Writes the keys of some rows, each with its number where there are any.

    The samples are read again, for keys are not kept in a scan.
    """
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        for start in range(0, len(rows), at_a_time):
            samples = _read(source, found, rows[start : start + at_a_time])
            for place, sample in enumerate(samples, start):
                number = "" if numbers is None else f"\t{numbers[place]}"
                file.write(f"{_one_line(sample.key)}{number}\n")


def _one_line(key):
    # All else stays: `exclude` of a subset compares whole keys, spaces included.
    return re.sub(r"[\t\n\v\f\r]", " ", key)


def _lines(figures, out):
    """What the command prints."""
    bad, duplicates = Counter(figures["bad"]), figures["duplicates"]
    good = f"{figures['good']:,} of {figures['scanned']:,} samples can be trained on"
    if figures["scanned"] < figures["samples"]:
        good += f" (a random part of {figures['samples']:,})"
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in bad.most_common())
    skipped = figures["left_out_by_the_index"]
    left_out = ", ".join(f"{reason} {n:,}" for reason, n in skipped.items())
    alike = NO_LOOKS
    if duplicates["alike_groups"] is not None:
        alike = f"{duplicates['alike_to_the_eye']:,} in {duplicates['alike_groups']:,} group"
        alike += "s" * (duplicates["alike_groups"] != 1)
    lines = [
        good + (f"; bad: {reasons}" if reasons else ""),
        f"left out by the index: {left_out}" if left_out else "",
        f"captions: {figures['captions']['texts']:,}, scripts "
        + ", ".join(f"{s} {n:,}" for s, n in list(figures["captions"]["scripts"].items())[:6]),
        f"same file as an earlier one: {duplicates['files_there_before']:,}; alike to the eye: "
        + alike,
        f"{figures['samples_per_second']:,.0f} samples/s. Read {out / 'report.html'}",
    ]
    return "\n".join(filter(None, lines))
