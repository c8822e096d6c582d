"""`vlrep data inspect`: training pictures and texts exactly as the model gets them, as a page."""

from contextlib import closing
from pathlib import Path

import numpy as np

from vlrep_jax.data_tools.recipe import open_recipe
from vlrep_jax.report.markup import esc, image, percent, write_page


def inspect(config, out: Path, *, label: str, count: int = 48, step: int = 0, say=print) -> dict:
    """Writes a page of the first rows of one training batch.

    Args:
        config: of a recipe.
        out: the HTML file.
        label: what the page calls the recipe.
        count: rows to show, at most; as many as divide the recipe's batch evenly.
        step: of training; the batch is the one that is taken after so many steps.
        say: told where the page is.

    Returns:
        The rows as `pipeline.train_batches` gives them.

    Raises:
        ValueError: what the recipe or its data raise, or a wrong number or ending.
        IsADirectoryError: `out` is one.
    """
    if step < 0 or count < 1:
        raise ValueError(f"--step={step} must be 0 or more, and --count={count} 1 or more.")
    if out.is_dir():
        raise IsADirectoryError(f"--out={out} is a directory; name a file, such as page.html.")
    if out.suffix not in (".html", ".htm"):  # it replaces what is there
        raise ValueError(f"--out={out} must end in .html.")
    recipe = open_recipe(config)
    rows = recipe.rows_near(count)
    with closing(recipe.batches(rows, num_workers=0, num_threads=1, prefetch=1)) as batches:
        batches.restore(batches.state() | {"next_batch": step})
        batch = next(batches)
        reasons = dict(batches.bad_reasons)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    write_page(out, label, _page(label, step, batch, recipe, reasons))
    say(f"Wrote {rows} rows of the batch of step {step} to {out}")
    return batch


def _page(label, step, batch, recipe, reasons):
    tokenizer = recipe.tokenizer
    texts, ids = [tokenizer.decode(row) for row in batch["text"]], batch["text"]
    lengths = [_length(row, tokenizer) for row in ids]
    size, length = recipe.image_size, recipe.context_length
    same = len(ids) - len(np.unique(batch["pair_ids"]))
    facts = [
        f"step {step}",
        f"pictures of {size} x {size}, as the model gets them",
        f"texts decoded from their ids, {length} at most",
    ]
    cut, bad = (percent(batch[name].mean()) for name in ("truncated", "bad"))
    notes = [
        f"{cut} of the texts are cut, {bad} of the rows stand for bad samples{_of(reasons)}, "
        f"{same} rows show what another one shows."
    ]
    cells = "".join(
        f'<figure class="card">{image(pixels, text)}<p dir="auto">{esc(text)}</p>'
        f"<small>{_remark(n, cut, bad)}</small></figure>"
        for pixels, text, n, cut, bad in zip(
            batch["image"], texts, lengths, batch["truncated"], batch["bad"], strict=True
        )
    )
    return [
        f"<h1>{esc(label)}</h1>",
        f'<p class="sub">{esc(" · ".join(facts))}</p>',
        f"<p>{esc(' '.join(notes))}</p>",
        f'<div class="sheet">{cells}</div>',
    ]


def _of(reasons):
    return f" ({', '.join(f'{reason} {n}' for reason, n in reasons.items())})" if reasons else ""


def _length(ids, tokenizer):
    """Ids up to the end token, it included."""
    end = np.flatnonzero(ids == tokenizer.eos_id)
    start = 0 if tokenizer.bos_id is None else 1
    end = end[end >= start]
    return int(end[0]) + 1 if len(end) else len(ids)


def _remark(length, cut, bad):
    remarks = [f"{length} tokens"] + ["cut"] * bool(cut) + ["replacement"] * bool(bad)
    return " · ".join(remarks)
