"""Results of a search as a page that holds its pictures and loads nothing from elsewhere."""

from collections.abc import Sequence
from pathlib import Path

from vlrep_jax.report.markup import encoded_image, esc, write_page
from vlrep_jax.search.engine import Hit
from vlrep_jax.search.store import Store


def write_results(path: str | Path, title: str, hits: Sequence[Hit], store: Store) -> None:
    """Writes what a search found as one HTML file, replaced whole."""
    total = store.db.execute("SELECT count(*) FROM pictures WHERE pending = 0").fetchone()[0]
    figures = "".join(_figure(hit, store) for hit in hits)
    sheet = f'<div class="sheet">{figures}</div>' if hits else "<p>The index is empty.</p>"
    sub = f"The {len(hits)} nearest of {total:,} pictures in {esc(store.path)}, nearest first."
    write_page(path, title, [f"<h1>{esc(title)}</h1>", f'<p class="sub">{sub}</p>', sheet])


def _figure(hit, store):
    name = hit.picture.found.name
    label = Path(name).name
    picture = encoded_image(store.thumbnail(hit.picture.digest), "jpeg", label)
    return (
        f'<figure class="card">{picture}<p title="{esc(name)}">{esc(label)}<br>'
        f'<small class="tabular">{hit.rank} · {hit.score:.3f}</small></p></figure>'
    )
