"""The retrieved cases of a report as one PNG, to stand in a README."""

from functools import cache
from pathlib import Path

import numpy as np

from vlrep_jax.report.markup import ordinal, percent

INK, MUTED, LINE, RIGHT, TINT = "#1d1c1a", "#6b6862", "#dedbd3", "#1a8a4a", "#e9f5ee"
MARGIN, GAP, PICTURE, TEXT_SIZE, LINE_HEIGHT = 26, 8, 54, 14, 18
CAPTION_WIDTH, COLUMN_GAP, LIST_WIDTH = 170, 34, 390
LATE_GAP = 14  # before the right picture that is not among the five


def contact_sheet(path, panel, *, right=4, wrong=4, scale=2):
    """Draws captions with their five pictures (left) and pictures with their five captions.

    The cases are picked as the report picks them, at even distances through all right and all
    wrong ones. Green is right; a right one that is not among the five follows with its place.

    Args:
      path: the PNG.
      panel: a `RetrievalPanel`.
      right, wrong: captions of each; half as many pictures.
      scale: pixels for each unit of the layout, which is about 1,100 wide.
    """
    pictures_width = 6 * (PICTURE + GAP) + LATE_GAP
    middle = MARGIN + CAPTION_WIDTH + pictures_width + COLUMN_GAP
    columns = [
        (MARGIN, "caption", "pictures", panel.rank_of_caption, _caption_row),
        (middle, "picture", "captions", panel.rank_of_image, _image_row),
    ]
    cases = [
        panel.caption_cases(right, wrong),
        panel.image_cases(max(right // 2, 1), max(wrong // 2, 1)),
    ]
    sheet = _Sheet(middle + PICTURE + 2 * GAP + LIST_WIDTH + MARGIN, 4000, scale)
    bottom = 0
    for (x, query, candidates, rank, draw_row), groups in zip(columns, cases, strict=True):
        y = MARGIN
        share = float(np.mean(rank[rank > 0] == 1)) if (rank > 0).any() else 0.0
        for verdict, part, group in zip(
            ("right", "wrong"), (share, 1 - share), groups, strict=True
        ):
            heading = f"{query} → {candidates}: first is {verdict}"
            width = sheet.text(x, y, heading, bold=True)
            note = f"{percent(part)} of {int((rank > 0).sum()):,}"
            sheet.text(x + width + GAP, y, note, colour=MUTED)
            y += LINE_HEIGHT + GAP
            for case in group:
                y += draw_row(sheet, panel, case, x, y) + GAP
            y += GAP
        bottom = max(bottom, y)
    sheet.save(path, bottom + MARGIN - 2 * GAP)


def _caption_row(sheet, panel, case, x, y):
    lines = sheet.wrap(panel.captions[case.query], CAPTION_WIDTH - GAP, lines=3)
    top = y + (PICTURE - LINE_HEIGHT * len(lines)) / 2
    for i, line in enumerate(lines):
        sheet.text(x, top + LINE_HEIGHT * i, line)
    x += CAPTION_WIDTH
    for place, index in enumerate(case.found):
        left = x + place * (PICTURE + GAP)
        sheet.picture(left, y, panel.pictures[index], right=index in case.own)
    if case.missing is not None:
        left = x + len(case.found) * (PICTURE + GAP) + LATE_GAP
        sheet.divider(left - (LATE_GAP + GAP) / 2, y)
        sheet.picture(left, y, panel.pictures[case.missing], right=True, note=ordinal(case.rank))
    return PICTURE


def _image_row(sheet, panel, case, x, y):
    sheet.picture(x, y, panel.pictures[case.query])
    x += PICTURE + 2 * GAP
    rows = [(f"{place}", i) for place, i in enumerate(case.found, 1)]
    if case.missing is not None:
        rows.append((ordinal(case.rank), case.missing))
    height = LINE_HEIGHT + 3
    for row, (place, index) in enumerate(rows):
        top, own = y + row * height, index in case.own
        if own:
            sheet.band(x, top, LIST_WIDTH, height - 1)
        sheet.text(x + 6, top + 2, place, colour=RIGHT if own else MUTED, size=TEXT_SIZE - 2)
        (line,) = sheet.wrap(panel.captions[index], LIST_WIDTH - 46, lines=1, bold=own)
        sheet.text(x + 40, top + 1, line, bold=own)
    return max(PICTURE, len(rows) * height)


class _Sheet:
    """A white canvas in layout units; what is drawn is `scale` times as many pixels."""

    def __init__(self, width, height, scale):
        from PIL import Image, ImageDraw

        self._scale = scale
        self._image = Image.new("RGB", (round(width * scale), round(height * scale)), "white")
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x, y, text, *, bold=False, colour=INK, size=TEXT_SIZE):
        """Draws one line and returns its width."""
        drawn = font(round(size * self._scale), bold)
        self._draw.text((x * self._scale, y * self._scale), text, fill=colour, font=drawn)
        return drawn.getlength(text) / self._scale

    def wrap(self, text, width, *, lines, bold=False):
        """The text in lines of at most `width`; what does not fit becomes an ellipsis."""
        drawn, width = font(round(TEXT_SIZE * self._scale), bold), width * self._scale
        wrapped, words = [""], text[:2000].split()
        for word in words:
            longer = f"{wrapped[-1]} {word}".strip()
            if drawn.getlength(longer) <= width or not wrapped[-1] or len(wrapped) == lines:
                wrapped[-1] = longer  # too long only for the last line, or for a word of its own
            else:
                wrapped.append(word)
        for i, line in enumerate(wrapped):
            # At most this many characters are looked at: a caption may be a whole document.
            line, end = line[:500], "…" if len(line) > 500 else ""
            while line and drawn.getlength(line + end) > width:
                line, end = line[:-1].rstrip(), "…"
            wrapped[i] = line + end
        return wrapped

    def picture(self, x, y, pixels, *, right=False, note=""):
        from PIL import Image

        s, pad = self._scale, 4
        box = [x * s, y * s, (x + PICTURE) * s - 1, (y + PICTURE) * s - 1]
        edge = dict(outline=RIGHT, width=3 * s) if right else dict(outline=LINE, width=s)
        self._draw.rounded_rectangle(box, 8 * s, fill="white", **edge)
        picture, inner = Image.fromarray(np.asarray(pixels)), (PICTURE - 2 * pad) * s
        zoom = inner / max(picture.size)
        picture = picture.resize(
            [max(round(side * zoom), 1) for side in picture.size], Image.LANCZOS
        )
        left, top = ((PICTURE * s - side) // 2 for side in picture.size)
        self._image.paste(picture, (round(x * s) + left, round(y * s) + top))
        if note:
            drawn = font(round((TEXT_SIZE - 2) * s), False)
            width = drawn.getlength(note) + 8 * s
            corner = [box[2] - width, box[3] - 15 * s, box[2], box[3]]
            self._draw.rounded_rectangle(corner, 4 * s, fill=RIGHT)
            self._draw.text((corner[0] + 4 * s, corner[1] + s), note, fill="white", font=drawn)

    def band(self, x, y, width, height):
        s = self._scale
        box = [x * s, y * s, (x + width) * s, (y + height) * s]
        self._draw.rounded_rectangle(box, 4 * s, fill=TINT)

    def divider(self, x, y):
        s = self._scale
        self._draw.line([x * s, (y + 6) * s, x * s, (y + PICTURE - 6) * s], fill=LINE, width=s)

    def save(self, path, height):
        """Writes the PNG, cut to a height."""
        width = self._image.width
        self._image.crop((0, 0, width, round(height * self._scale))).save(path, optimize=True)


@cache
def font(size: int, bold: bool = False):
    """DejaVu Sans of so many pixels, as a font of Pillow's."""
    # matplotlib's own copy: no font need be installed, and it holds more scripts than Pillow's.
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
