"""Writes a model in another project's layout, with the files its own loader looks for."""

from pathlib import Path

from vlrep_jax.build import find
from vlrep_jax.data import preprocess_files
from vlrep_jax.data.tokenizers import save_huggingface
from vlrep_jax.models.coca import CoCa
from vlrep_jax.models.dual_encoder import DualEncoder
from vlrep_jax.models.fusion import FusionEncoder
from vlrep_jax.models.text_to_image import TextToImage
from vlrep_jax.weights import big_vision, files, huggingface, openai, openclip, own
from vlrep_jax.weights.mapping import their_shapes, theirs
from vlrep_jax.weights.reading import by_path
from vlrep_jax.whole import whole
from vlrep_jax.workdirs import write_json


def write(path: Path, layout: str, pretrained) -> None:
    """See `weights.save`."""
    write_layout = find(LAYOUTS, layout, "layout")
    if layout == "vlrep":
        write_layout(path, pretrained)
        return
    if not isinstance(pretrained.model, DualEncoder):
        kind = type(pretrained.model).__name__
        raise ValueError(f"No other project has a place for a {kind}: dual encoders are written.")
    if isinstance(pretrained.model, TextToImage):
        raise ValueError("No other project has a place for a TextToImage: 'vlrep' has.")
    if isinstance(pretrained.model, FusionEncoder):
        raise ValueError(f"The layout {layout!r} has no place for fusion layers; 'vlrep' has.")
    if layout != "openclip" and isinstance(pretrained.model, CoCa):
        raise ValueError(f"The layout {layout!r} has no place for CoCa's decoder; 'openclip' has.")
    write_layout(path, pretrained)


def _huggingface(path, pretrained):
    model, image = pretrained.model, pretrained.preprocess
    config = huggingface.config(model)
    processor = preprocess_files.to_huggingface(image)
    with whole(path) as part:
        part.mkdir()
        write_json(part / "config.json", config)
        write_json(part / "preprocessor_config.json", processor)
        if pretrained.tokenizer is not None:
            save_huggingface(pretrained.tokenizer, part)
        _tensors(huggingface.entries(model), pretrained, files.write_safetensors)(
            part / "model.safetensors"
        )


def _openclip(path, pretrained):
    model, tokenizer = pretrained.model, pretrained.tokenizer
    if tokenizer is not None and tokenizer.kind == "clip":
        tokenizer = None  # its own, of which it needs no files
    options = None if tokenizer is None else tokenizer.openclip_options()
    config = {
        "model_cfg": openclip.config(model, options),
        "preprocess_cfg": preprocess_files.to_openclip(pretrained.preprocess),
    }
    with whole(path) as part:
        part.mkdir()
        write_json(part / "open_clip_config.json", config)
        if tokenizer is not None:
            save_huggingface(tokenizer, part)
        _tensors(openclip.entries(model), pretrained, files.write_safetensors)(
            part / "open_clip_model.safetensors"
        )


def _openai(path, pretrained):
    _one_file(path, "model.pt", openai.entries(pretrained.model), pretrained, files.write_torch)


def _big_vision(path, pretrained):
    entries = big_vision.entries(pretrained.model)
    _one_file(path, "model.npz", entries, pretrained, files.write_npz)


def _own(path, pretrained):
    entries = own.entries(by_path(pretrained.params))
    with whole(path) as part:
        part.mkdir()
        write_json(part / own.CONFIG, own.config(pretrained.config))
        if pretrained.tokenizer is not None:
            pretrained.tokenizer.save(part / own.TOKENIZER)
        _tensors(entries, pretrained, files.write_safetensors)(part / own.WEIGHTS)


def _one_file(path, name, entries, pretrained, write_file):
    """`path` itself where it has the suffix, or a file of that name in a directory `path`."""
    suffix = Path(name).suffix
    if path.suffix not in ("", suffix):
        raise ValueError(f"{path}: this layout is a {suffix} file; name one, or a directory.")
    with whole(path) as part:
        write_tensors = _tensors(entries, pretrained, write_file)
        if path.suffix:
            write_tensors(part)
        else:
            part.mkdir()
            write_tensors(part / name)


def _tensors(entries, pretrained, write_file):
    leaves = by_path(pretrained.params)
    shapes = their_shapes(entries, {path: leaf.shape for path, leaf in leaves.items()})
    return lambda path: write_file(path, shapes, theirs(entries, leaves))


LAYOUTS = {
    "huggingface": _huggingface,
    "openclip": _openclip,
    "openai": _openai,
    "big_vision": _big_vision,
    "vlrep": _own,
}
