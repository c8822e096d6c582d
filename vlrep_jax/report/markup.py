"""The frame of a page and small pieces of HTML.

Text from outside becomes HTML through `esc` and nowhere else.
"""

import base64
import html
import io
import os
from importlib import resources
from pathlib import Path

import numpy as np


def write_page(path, title, parts):
    """Writes HTML parts as one page that loads nothing from elsewhere; replaces the file whole."""
    css = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{esc(title)}</title><style>\n{css}</style></head>\n"
        f"<body><main>\n{chr(10).join(filter(None, parts))}\n</main></body></html>\n"
    )
    path = Path(path)
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        part.write_text(page, encoding="utf-8", errors="replace")  # keys may be no text
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def esc(text):
    return html.escape(str(text), quote=True)


def percent(share):
    return f"{100 * share:.1f} %"  # with a space that does not break


def duration(seconds):
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def ordinal(n):
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th") if n % 100 not in (11, 12, 13) else "th"
    return f"{n:,}{suffix}"


def bar(share, mark=None):
    """A share as a filled track, with a line across it at `mark`."""
    tick = "" if mark is None else f'<u style="left:{100 * mark:.2f}%"></u>'
    return f'<span class="track"><i style="width:{100 * share:.2f}%"></i>{tick}</span>'


def image(pixels, alt):
    """uint8[h, w, 3] as an <img> that holds its own data."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, format="PNG", optimize=True)
    return encoded_image(buffer.getvalue(), "png", alt)


def encoded_image(data, kind, alt):
    """The bytes of a picture file of a kind, such as "png", as an <img> that holds them."""
    data = base64.b64encode(data).decode()
    return f'<img alt="{esc(alt)}" title="{esc(alt)}" src="data:image/{kind};base64,{data}">'
