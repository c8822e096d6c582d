"""What `vlrep generate` and `vlrep edit` do: models in, a directory of pictures out."""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from vlrep_jax import weights
from vlrep_jax.build import near
from vlrep_jax.guidance.edit import EDIT_VIEWS, edit
from vlrep_jax.guidance.generators import GENERATORS, Generator, learned
from vlrep_jax.guidance.loop import guide
from vlrep_jax.guidance.pictures import grid, levels, read_mask, read_picture, save_animation
from vlrep_jax.guidance.targets import Guide, check_weights
from vlrep_jax.metrics import Progress
from vlrep_jax.whole import whole
from vlrep_jax.workdirs import write_json

# Of an animation, at most, and least pixels of a picture's side in it: it is to stay small.
FRAMES, FRAME_SIDE = 24, 96


def run_generate(
    models: Sequence[str],
    texts: Sequence[str],
    out: Path,
    *,
    generator: str = "laplacian",
    others: Sequence[str] = (),
    count: int = 4,
    size: int = 0,
    steps: int = 200,
    seed: int = 0,
) -> None:
    """Writes OUT/{0000.png, ..., sheet.png, frames.png, record.json}; the same for the same seed.

    Args:
      models: paths, see `weights.load`; several guide together.
      texts: what to show; `count` pictures of each.
      generator: 'laplacian', 'fourier', or the path of a run of configs/generator_gan.py.
      others: what the pictures are not to show.
      size: pixels of a side; 0 is what the largest of the models sees, or the generator's own.

    Raises:
      FileExistsError: OUT is there already.
      FileNotFoundError, ValueError: no such model or generator, or a value that makes no sense.
    """
    if count < 1:
        raise ValueError(f"--count={count} must be at least 1.")
    if size < 0:
        raise ValueError(f"--size={size} must not be negative.")
    _check_seed(seed)
    with whole(out) as part:
        guides = Guide([weights.load(path) for path in models])
        made = named_generator(generator, size, guides)
        wanted = [text for text in texts for _ in range(count)]
        target = guides.toward(wanted, others)
        latent_key, view_key = jax.random.split(jax.random.key(seed))
        with _shown(steps) as (frames, on_step):
            latent = made.init(latent_key, wanted)
            guided = guide(made, latent, target, key=view_key, steps=steps, on_step=on_step)
        images = levels(guided.images)
        frames.append(images)
        part.mkdir()
        for i, pixels in enumerate(images):
            Image.fromarray(pixels).save(part / f"{i:04}.png")
        _write_sheets(part, images, frames, columns=count if len(texts) > 1 else 0)
        pictures = [
            {"file": f"{i:04}.png", "text": text, "cosine": cosines}
            for i, (text, cosines) in enumerate(
                zip(wanted, _cosines(guides, images, wanted), strict=True)
            )
        ]
        options = {"generator": generator, "not": list(others), "steps": steps, "seed": seed}
        write_json(part / "record.json", {"models": list(models), **options, "pictures": pictures})
    print(f"Wrote {len(images)} pictures, sheet.png, frames.png and record.json to {out}.")


def run_edit(
    models: Sequence[str],
    image: str,
    source: str,
    target: str,
    out: Path,
    *,
    strength: float = 1.0,
    closeness: float = 2.0,
    mask: str = "",
    steps: int = 150,
    seed: int = 0,
) -> None:
    """Writes OUT/{edited.png, sheet.png, frames.png, record.json}; the same for the same seed.

    Args:
      models: as in `run_generate`.
      image: a picture file.
      source, target: what it shows, and what it is to show.
      mask: file of a picture of the same size, white where the picture may change; '' is anywhere.
      the others: see `edit`.

    Raises:
      FileExistsError: OUT is there already.
      FileNotFoundError, ValueError: no such model or file, or a value that makes no sense.
    """
    check_weights(**{"--strength": strength, "--closeness": closeness})
    _check_seed(seed)
    with whole(out) as part:
        original = read_picture(image, "--image")
        allowed = read_mask(mask, *original.shape[:2]) if mask else None
        guides = Guide([weights.load(path) for path in models], EDIT_VIEWS)
        with _shown(steps) as (frames, on_step):
            edited = edit(
                guides,
                original,
                source,
                target,
                key=jax.random.key(seed),
                strength=strength,
                closeness=closeness,
                mask=allowed,
                steps=steps,
                on_step=on_step,
            )
        part.mkdir()
        Image.fromarray(edited.image).save(part / "edited.png")
        frames.append(levels(edited.guided.images))
        _write_sheets(part, [original, edited.image], frames, columns=2)
        change = (np.float64(edited.image) - np.float64(original)) / 255
        cosines = _cosines(guides, [original, edited.image], [target] * 2)
        options = {"strength": strength, "closeness": closeness, "mask": mask, "steps": steps}
        record = {"models": list(models), "image": image, "from": source, "to": target, **options}
        record |= {"seed": seed, "rms_change": float(np.sqrt((change**2).mean()))}
        record |= {"cosine_before": cosines[0], "cosine_after": cosines[1]}
        write_json(part / "record.json", record)
    print(f"Wrote edited.png, sheet.png, frames.png and record.json to {out}.")


def named_generator(name: str, size: int, guides: Guide) -> Generator:
    """The generator that --generator means; arguments and errors as of `run_generate`."""
    direct = [known for known in GENERATORS if known != "learned"]
    if name in direct:
        size = size or max(model.preprocess.size for model in guides.models)
        return GENERATORS[name](size, size)
    if not Path(name).exists():
        raise ValueError(
            f"--generator={name} is none of {', '.join(direct)} ({near(name, direct)}), nor the "
            "path of a run of configs/generator_gan.py."
        )
    if size:
        raise ValueError(f"--size={size} is for {' and '.join(direct)}: {name} has its own.")
    return learned(weights.load(name))


def _check_seed(seed):
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed={seed} must be from 0 to {2**32 - 1}.")


@contextmanager
def _shown(steps):
    """([frames as uint8[n, h, w, 3]], on_step) of a descent that is shown as it goes."""
    progress, frames = Progress(steps), []
    every = -(-steps // FRAMES)

    def on_step(step, images, metrics):
        progress.advance(step + 1)
        if step % every == 0:
            frames.append(levels(images))
            progress.show({name: float(np.mean(value)) for name, value in metrics.items()})

    try:
        yield frames, on_step
    finally:
        progress.close()


def _write_sheets(part, images, frames, columns):
    """Writes the pictures side by side, and how they came to be."""
    grid(images, columns).save(part / "sheet.png")
    save_animation(part / "frames.png", [grid(frame, columns, FRAME_SIDE) for frame in frames])


def _cosines(guides, images, texts):
    """[[cosine of a picture and its text by each model]], each seen once and as it is."""
    found = []
    for model in guides.models:
        image, text = model.encode_image(list(images)), model.encode_text(list(texts))
        found.append((image * text).sum(-1))
    return [[round(float(value), 6) for value in row] for row in np.transpose(found)]
