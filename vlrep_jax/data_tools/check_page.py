"""The page of `vlrep data check`."""

import numpy as np

from vlrep_jax.report.markup import bar, duration, esc, image, percent, write_page

NO_LOOKS = "not looked for: pip install 'vlrep_jax[data]' brings imagehash, which it takes"
THUMBNAIL = 160  # pixels of the long side
WHY = {
    "changed": "its file is not the one that was indexed",
    "columns": "a row with more or fewer fields than the table has columns",
    "corrupt": "damaged: the decoder gave up, or a record or row group cannot be read",
    "empty": "a file without bytes",
    "format": "no picture format that is read here",
    "json": "no JSON object",
    "missing": "there is no such file",
    "no_caption": "no text that is not blank",
    "not_finite": "pixels that are no numbers",
    "not_text": "a caption that is no text",
    "not_utf8": "a caption that is not UTF-8",
    "outside": "a path that leads out of the data set",
    "too_large": "more pixels or bytes than are allowed",
    "too_small": "a side of one pixel",
    "truncated": "the file was cut off",
    "unreadable": "its file cannot be read",
    "value": "a value that Python has not, such as a date before year 1",
}

# Of samples, files or members that a source's index leaves out.
LEFT_OUT = {
    "bad_header": "a damaged header; what lies behind it in its shard cannot be found",
    "behind_end": "another archive behind the end mark: shards were joined by cat",
    "device": "a device or pipe in a shard",
    "duplicate_key": "a sample's name that its shard has already",
    "duplicate_member": "a second picture or text of one sample",
    "link": "a link in a shard; none is followed",
    "long_name": "a name of more than a megabyte",
    "no_caption": "a sample without its text",
    "no_extension": "hidden files, and names without an ending",
    "no_image": "a sample without a picture",
    "no_json": "a sample without its JSON",
    "no_picture": "a text without a picture",
    "no_text": "a picture without a text",
    "other_type": "what is neither a file nor a directory",
    "outside": "a link that leads out of the folder",
    "sparse": "a sparse file in a shard",
    "svg": "a drawing, which has no pixels",
    "too_large": "a file above 256 MiB",
    "truncated": "a shard that ends within a member",
    "unreadable": "a folder that cannot be listed",
    "unsafe_name": "a name that is absolute or leads upwards",
}


def write_check_page(path, figures, *, sheet, alike):
    """Writes the page.

    Args:
        path: the file, replaced whole.
        figures: of `check.summary`.
        sheet: (picture uint8[h, w, 3], captions, key) of some samples.
        alike: groups of the same.
    """
    facts = [f"{figures['scanned']:,} samples looked at in {duration(figures['seconds'])}"]
    if figures["scanned"] < figures["samples"]:
        facts.append(f"a random part of {figures['samples']:,}")
    parts = [
        f"<h1>{esc(figures['source'])}</h1>",
        f'<p class="sub">{esc(" · ".join(facts))}</p>',
        _headline(figures),
        _bad(figures),
        _sizes(figures),
        _captions(figures["captions"]),
        "<h2>Pictures</h2><p>At even distances through the data set: nobody picked them.</p>",
        _sheet(sheet),
        _alike(figures["duplicates"], alike),
    ]
    write_page(path, figures["source"], parts)


def _headline(figures):
    scanned, duplicates = figures["scanned"], figures["duplicates"]
    tiles = [
        (percent(figures["good"] / scanned), f"of {scanned:,} can be trained on"),
        (
            percent(duplicates["files_there_before"] / scanned),
            "are the same file as an earlier one",
        ),
    ]
    if duplicates["alike_groups"] is not None:
        share = percent(duplicates["alike_to_the_eye"] / scanned)
        groups = f"{duplicates['alike_groups']:,} group{'s' * (duplicates['alike_groups'] != 1)}"
        tiles.append((share, f"look like another, of another file ({groups})"))
    cells = "".join(f"<div><strong>{a}</strong><span>{esc(b)}</span></div>" for a, b in tiles)
    return f'<div class="headline">{cells}</div>'


def _bad(figures):
    rows = [
        (reason, n, WHY.get(reason, ""), n / figures["scanned"])
        for reason, n in figures["bad"].items()
    ]
    left = figures["left_out_by_the_index"]
    rows += [(reason, n, _left_out(reason), None) for reason, n in left.items()]
    if not rows:
        return "<h2>Bad samples</h2><p>None.</p>"
    body = "".join(
        f'<tr><td class="name">{esc(reason)}<td class="n">{n:,}<td class="n">'
        f'{"" if share is None else percent(share)}<td class="mistake">{esc(why)}</tr>'
        for reason, n, why, share in rows
    )
    told = ""
    if figures["bad"]:
        told = (
            "<p>Training replaces each by another and counts it. <b>bad.tsv</b> has the keys.</p>"
        )
    return f'<h2>Bad samples</h2>{told}<div class="card"><table>{body}</table></div>'


def _left_out(reason):
    why = LEFT_OUT.get(reason.rpartition("/")[2])  # of a mixture behind the name of the part
    return f"left out by the index: {why}" if why else "left out by the index"


def _sizes(figures):
    rows = [
        ("width, pixels", figures["width"]),
        ("height, pixels", figures["height"]),
        ("long side over short side", figures["long_over_short"]),
        ("file, bytes", figures["file_bytes"]),
    ]
    formats = ", ".join(f"{name} {n:,}" for name, n in figures["formats"].items())
    return (
        f"<h2>Sizes</h2><p>{esc(formats)}</p>"
        f'<div class="columns"><div class="card"><h3>Short side</h3>'
        f"{_histogram(figures['short_side'].get('counts', {}))}</div>"
        f'<div class="card"><h3>Range</h3>{_ranges(rows)}</div></div>'
    )


def _captions(captions):
    rows = [
        ("captions of a picture", captions["of_a_picture"]),
        ("characters", captions["characters"]),
        ("words", captions["words"]),
    ]
    repeated = "".join(
        f'<tr><td class="name" dir="auto">{esc(text[:200])}<td class="n">{n:,}</tr>'
        for text, n in captions["most_repeated"]
    )
    table = f"<table>{repeated}</table>" if repeated else "<p>No caption stands twice.</p>"
    return (
        f"<h2>Captions</h2><p>{captions['texts']:,} texts, {captions['different']:,} of them "
        f'different.</p><div class="columns">'
        f'<div class="card"><h3>Words</h3>{_histogram(captions["words"].get("counts", {}))}</div>'
        f'<div class="card"><h3>Range</h3>{_ranges(rows)}</div>'
        f'<div class="card"><h3>Scripts</h3>{_histogram(captions["scripts"])}</div>'
        f'<div class="card"><h3>Most repeated</h3>{table}</div></div>'
    )


def _histogram(counts, most=12):
    total = max(sum(counts.values()), 1)
    rows = "".join(
        f'<tr><td>{esc(name)}<td class="n">{n:,}<td class="bar">{bar(n / total)}</tr>'
        for name, n in list(counts.items())[:most]
    )
    return f"<table>{rows}</table>"


def _ranges(rows):
    names = ("min", "p5", "median", "p95", "max")
    head = "".join(f'<th class="n">{name}' for name in names)
    body = "".join(
        f"<tr><td>{esc(label)}"
        + "".join(f'<td class="n">{_number(values.get(name, 0))}' for name in names)
        + "</tr>"
        for label, values in rows
    )
    return f"<table><tr><th>{head}</tr>{body}</table>"


def _number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"


def _alike(duplicates, groups):
    if duplicates["alike_groups"] is None:
        return f"<h2>Alike to the eye</h2><p>{esc(NO_LOOKS.capitalize())}.</p>"
    head = (
        "<h2>Alike to the eye</h2><p>Perceptual hashes of 64 bits that differ in at most 3, joined "
        "from pair to pair; not each is a duplicate. All are in <b>near_duplicates.tsv</b>, and "
        "the keys of files that are byte for byte the same as an earlier one in "
        "<b>duplicates.txt</b>.</p>"
    )
    if duplicates["in_crowds"]:
        head += (
            f"<p>{duplicates['in_crowds']:,} pictures share a quarter of their hash with more than "
            "5,000 others and were compared there by equality alone.</p>"
        )
    return head + "".join(_sheet(group) for group in groups) if groups else ""


def _sheet(items):
    cells = "".join(
        f'<figure class="card">{image(thumbnail(pixels), key)}'
        f'<p dir="auto">{esc(" / ".join(captions)[:160])}</p></figure>'
        for pixels, captions, key in items
    )
    return f'<div class="sheet">{cells}</div>'


def thumbnail(pixels):
    """uint8[h, w, 3] with a long side of at most THUMBNAIL."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)
