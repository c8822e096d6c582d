"""Exported towers: the model's numbers at any batch size without its code, or a clear line."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import IMAGES, TOKENS, create, params_of

from vlrep_jax import models
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.export import export_towers
from vlrep_jax.exported import load_exported
from vlrep_jax.objectives import normalizer

ROOT = Path(__file__).resolve().parent.parent
PREPROCESS = Preprocess(IMAGES.shape[1], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
PIXELS = np.random.default_rng(1).integers(0, 256, (5, *IMAGES.shape[1:]), np.uint8)
TEXTS = np.concatenate([TOKENS, TOKENS[:2]])


@pytest.fixture(scope="module", params=["dual_encoder", "shared_encoder"])
def exported(request, tmp_path_factory):
    """(model, params, directory)."""
    model, params = create(request.param), params_of(request.param)
    directory = tmp_path_factory.mktemp("exported") / "model"
    export_towers(model, params, directory, preprocess=PREPROCESS)
    return model, params, directory


def expected(model, params, images, tokens):
    normalize = normalizer(PREPROCESS.mean, PREPROCESS.std)

    def embed(params, images, tokens):
        variables = {"params": params}
        return (
            model.apply(variables, normalize(images), method="encode_image"),
            model.apply(variables, tokens, method="encode_text"),
        )

    return jax.jit(embed)(params, images, tokens)


def test_same_numbers_at_any_batch_size(exported):
    model, params, directory = exported
    loaded = load_exported(directory)
    for rows in (1, 2, 5):
        image, text = expected(model, params, PIXELS[:rows], TEXTS[:rows])
        np.testing.assert_array_equal(loaded.encode_image(PIXELS[:rows]), image)
        np.testing.assert_array_equal(loaded.encode_text(TEXTS[:rows]), text)


def test_what_stands_beside_the_programs(exported):
    model, params, directory = exported
    loaded = load_exported(directory)
    scale, bias = model.apply({"params": params}, method="scale_and_bias")
    assert (loaded.scale, loaded.bias) == (float(scale), bias)
    assert (loaded.image_size, loaded.context_length) == models.input_sizes(model)
    assert Preprocess(**loaded.preprocess) == PREPROCESS
    assert loaded.platforms == ("cpu", "cuda", "tpu")


def test_a_tower_holds_its_own_parameters_once(tmp_path):
    model, params = create("dual_encoder"), params_of("dual_encoder")
    export_towers(model, params, tmp_path / "model", preprocess=PREPROCESS, platforms=("cpu",))
    for tower in ("image", "text"):
        with np.load(tmp_path / "model" / f"{tower}.npz") as held:
            sizes = sum(held[name].size for name in held.files)
        # And the scale, which the module reads whichever tower it runs.
        assert sizes == sum(leaf.size for leaf in jax.tree.leaves(params[tower])) + 1


def test_running_needs_neither_flax_nor_data(exported):
    _, _, directory = exported
    code = f"""
import sys, numpy as np
from vlrep_jax.exported import load_exported
model = load_exported({str(directory)!r})
size, length = model.image_size, model.context_length
print(model.encode_image(np.zeros((2, size, size, 3), np.uint8)).shape)
print(model.encode_text(np.ones((3, length), np.int32)).shape)
print(sorted({{"flax", "optax", "orbax", "grain", "PIL"}} & set(sys.modules)))
"""
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["(2, 6)", "(3, 6)", "[]"]


def test_other_inputs_are_told(exported):
    loaded = load_exported(exported[2])
    for wrong, given in (
        (PIXELS.astype(np.float32), r"float32\[5, 8, 8, 3\]"),
        (PIXELS[:, :4], r"uint8\[5, 4, 8, 3\]"),
        ([1, 2], r"list\[2\]"),
    ):
        with pytest.raises(ValueError, match=rf"takes uint8\[b, 8, 8, 3\], not {given}"):
            loaded.encode_image(wrong)
    with pytest.raises(ValueError, match=r"takes int32\[b, 6\] with at least one row"):
        loaded.encode_text(TEXTS[:0])


def test_a_damaged_directory_is_told(tmp_path):
    directory = tmp_path / "model"
    model, params = create("dual_encoder"), params_of("dual_encoder")
    paths = export_towers(model, params, directory, preprocess=PREPROCESS, platforms=("cpu",))
    assert sorted(path.name for path in directory.iterdir()) == sorted(p.name for p in paths)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(FileExistsError, match="exists already"):
        export_towers(model, params, directory, preprocess=PREPROCESS)
    whole = (directory / "text.npz").read_bytes()
    (directory / "text.npz").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"text\.npz is damaged: its sha256"):
        load_exported(directory)
    (directory / "text.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks text\.npz"):
        load_exported(directory)
    meta = json.loads((directory / "export.json").read_text())
    (directory / "export.json").write_text(json.dumps(meta | {"platforms": ["tpu"]}))
    with pytest.raises(ValueError, match="exported for tpu, and this is cpu"):
        load_exported(directory)
    for content in ("{", "[]", "{}", json.dumps(meta | {"format": "other"})):
        (directory / "export.json").write_text(content)
        with pytest.raises(ValueError, match=r"export\.json is not of an exported model"):
            load_exported(directory)
    with pytest.raises(FileNotFoundError, match=r"there is no export\.json"):
        load_exported(tmp_path)


def test_what_cannot_be_exported_is_refused_and_nothing_written(tmp_path):
    model, params = create("dual_encoder"), params_of("dual_encoder")
    with pytest.raises(ValueError, match="makes pictures of 16 pixels, the model takes 8"):
        export_towers(model, params, tmp_path / "model", preprocess=Preprocess(16))
    flash = create("dual_encoder", attention="flash")
    with pytest.raises(ValueError, match="attention='flash' is a kernel of one platform"):
        export_towers(flash, params, tmp_path / "model", preprocess=PREPROCESS)
    assert not list(tmp_path.iterdir())
