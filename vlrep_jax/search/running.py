"""What `vlrep index` and `vlrep search` do and print."""

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax

from vlrep_jax import weights
from vlrep_jax.data.decoding import BadImage
from vlrep_jax.parallel import make_mesh
from vlrep_jax.search import approximate
from vlrep_jax.search.engine import Engine, Hit, make_query
from vlrep_jax.search.index import build
from vlrep_jax.search.loading import decoded
from vlrep_jax.search.model import described
from vlrep_jax.search.page import write_results
from vlrep_jax.search.store import Store, told
from vlrep_jax.search.writer import check_model
from vlrep_jax.terminal import one_line

UNREADABLE = "unreadable.tsv"
_NAMED = 10


def index(
    model: str, images: Sequence[str], out: Path, *, approximate_from: int | None = None
) -> None:
    """Makes or updates the index of pictures in a directory, and says what was done.

    Args:
      model: path, see `weights.load`.
      images: patterns, as for `listing.find_pictures`.
      out: directory of the index.
      approximate_from: pictures from which on there is a graph of near neighbours; None is
        approximate.FROM, and none without usearch.

    Raises:
      FileNotFoundError, ValueError, OSError: as `build`.
      ModuleNotFoundError: approximate_from is given and needs usearch, which is not installed.
    """
    # Pillow's, on palettes and the like: what it means is done, and it names no file.
    warnings.filterwarnings("ignore", module="PIL")
    is_installed = approximate.is_installed()
    if approximate_from is not None and not is_installed:
        raise ModuleNotFoundError(f"--approximate_from={approximate_from}: {approximate.MISSING}")
    least = approximate.FROM if approximate_from is None else approximate_from
    loaded = weights.load(model)
    graph_from = least if is_installed else None
    built = build(out, loaded, described(loaded, model), images, graph_from=graph_from)
    for problem in built.problems:
        print(problem, file=sys.stderr)
    _say_unreadable(out, built.unreadable)
    counts = built.counts
    total = counts.added + counts.changed + counts.unchanged
    print(
        f"{out}: {total:,} pictures. Added {counts.added:,}, changed {counts.changed:,}, "
        f"removed {counts.removed:,}, unchanged {counts.unchanged:,}; embedded {built.embedded:,} "
        f"in {built.seconds:.1f} s."
    )
    if built.recall:
        print(f"Searches are approximate: {recall_line(built.recall)}; --exact is exact.")
    elif total >= least and not is_installed:
        print(
            f"Searches are exact. From {least:,} pictures on approximate search is much faster: "
            "pip install 'vlrep_jax[search]' and run this again."
        )


def _say_unreadable(out, unreadable):
    path = out / UNREADABLE
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    lines = (f"{one_line(name)}\t{reason}\n" for name, reason in unreadable)
    path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    named = ", ".join(f"{shown(name)} ({reason})" for name, reason in unreadable[:_NAMED])
    more = f", and {len(unreadable) - _NAMED:,} more" if len(unreadable) > _NAMED else ""
    print(
        f"Left out {len(unreadable):,} that cannot be read: {named}{more}. All are in {path}.",
        file=sys.stderr,
    )


def recall_line(recall: dict) -> str:
    """What a graph finds of what exact search finds, in words."""
    parts = [f"{share:.3f} for {kind}" for kind, share in recall.items()]
    return f"recall@{approximate.K} against exact search is {' and '.join(parts)}"


def search(
    path: Path,
    text: str | None,
    *,
    image: str | None = None,
    without: str | None = None,
    k: int = 20,
    model: str | None = None,
    exact: bool = False,
    as_json: bool = False,
    html: Path | None = None,
) -> None:
    """Prints the pictures of an index that are nearest to a text, a picture, or both.

    Args:
      path: of the index.
      text, image: what to look for; the path of a picture.
      without: a text that the pictures shall not be like.
      k: how many.
      model: path of the index's model, where it is not where it was.
      exact: do not use a graph of near neighbours.
      as_json: print JSON lines, {"rank", "score", "path", "id", "width", "height"}.
      html: write a page with pictures instead.

    Raises:
      FileNotFoundError: there is no index, model or picture.
      ValueError: nothing to look for, k < 1, another model, or the picture cannot be read.
    """
    if not ((text or "").strip() or image):
        raise ValueError(
            'nothing to look for: give a text, as in `vlrep search INDEX "a red heart"`, or '
            "--image=FILE, or both."
        )
    if k < 1:
        raise ValueError(f"-k {k} must be at least 1.")
    if html is not None and html.is_dir():
        raise ValueError(f"--html={html} is a directory; name a file.")
    if html is not None and not html.absolute().parent.is_dir():
        raise FileNotFoundError(f"--html={html}: there is no directory {html.absolute().parent}.")
    engine = Engine(path, exact=exact, mesh=_mesh())
    with engine.store as store, told(path):
        loaded = model_of(store, model)
        wanted = [loaded.encode_text([text])[0]] if (text or "").strip() else []
        if image:
            wanted.append(loaded.encode_image([_pixels(image, loaded.preprocess)])[0])
        unwanted = [loaded.encode_text([without])[0]] if (without or "").strip() else []
        hits = engine.search(make_query(wanted, unwanted), k) if len(engine) else []
        if engine.recall and not as_json:
            print(f"Approximate: {recall_line(engine.recall)}; --exact is exact.", file=sys.stderr)
        if as_json:
            _print_json(hits)
        elif html is not None:
            words = [text or "", f"like {image}" if image else "", f"not {without}" * bool(without)]
            write_results(html, " · ".join(filter(str.strip, words)), hits, store)
            print(f"Wrote {len(hits)} of {len(engine):,} pictures to {html}")
        else:
            for hit in hits:
                print(f"{hit.rank:4}  {hit.score:6.3f}  {shown(hit.picture.found.name)}")


def _pixels(path, preprocess):
    """What the model takes of a picture that the user names."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileNotFoundError(f"--image={path}: {error.strerror}.") from None
    try:
        return decoded(data, preprocess)[0]
    except BadImage as error:
        raise ValueError(f"--image={path}: {error.why}.") from None


def model_of(store: Store, path: str | None = None) -> weights.Pretrained:
    """The model that an index was made by.

    Args:
      path: where it is; None for where it was.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: what is there is another model.
    """
    where = path or store.about["model"]["path"]
    try:
        loaded = weights.load(where)
    except FileNotFoundError as error:
        hint = "" if path else f"; {store.path} was made by it: say where it is, --model=PATH"
        raise FileNotFoundError(f"{str(error).rstrip('.')}{hint}.") from None
    check_model(store, described(loaded, where))
    return loaded


def shown(name: str) -> str:
    """A picture's name for people: below the current directory, relative to it."""
    here = os.getcwd().rstrip(os.sep) + os.sep
    return one_line(name.removeprefix(here))


def _print_json(hits: Sequence[Hit]):
    for hit in hits:
        found = {"rank": hit.rank, "score": hit.score, "path": hit.picture.found.name}
        found |= {"id": hit.picture.id, "width": hit.picture.width, "height": hit.picture.height}
        print(json.dumps(found))


def _mesh():
    devices = jax.local_devices()
    return make_mesh(devices=devices) if len(devices) > 1 else None
