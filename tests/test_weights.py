"""Published models by `weights.load` and `save`, and the commands on them; no torch here."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_pretrained import CLIP, QUICK, RESNET, SIGLIP, TINY, pretrained
from tiny_recipe import Squares, config
from tiny_vocabularies import wordpiece_vocabulary

from vlrep_jax import models, run, weights
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.data.tokenizers import ClipTokenizer, WordPieceTokenizer, save_huggingface
from vlrep_jax.experiment import make_experiment
from vlrep_jax.initial import find_initial
from vlrep_jax.weights import openai, openclip
from vlrep_jax.weights.mapping import their_shapes
from vlrep_jax.weights.reading import by_path, parameter_shapes

# layout -> (model, the file of weights it is written to).
LAYOUTS = {
    "huggingface": (CLIP, "model.safetensors"),
    "huggingface of SigLIP": (SIGLIP, "model.safetensors"),
    "openclip": (CLIP, "open_clip_model.safetensors"),
    "openclip of a ResNet": (RESNET, "open_clip_model.safetensors"),
    "openai": (QUICK, "model.pt"),
    "openai of a ResNet": (RESNET, "model.pt"),
    "big_vision": (SIGLIP, "model.npz"),
}


@pytest.fixture(scope="module")
def made():
    """section id -> Pretrained, each drawn once."""
    cache = {}

    def get(section):
        if id(section) not in cache:
            cache[id(section)] = pretrained(section)
        return cache[id(section)]

    return get


def saved(path, model, layout):
    weights.save(path, model, layout.split()[0])
    return path


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.filterwarnings("ignore:.*does not say which activation")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_the_same_to_the_bit(tmp_path, made, layout):
    section, name = LAYOUTS[layout]
    one = made(section)
    saved(tmp_path / "out", one, layout)
    assert (tmp_path / "out" / name).is_file()
    for path in (tmp_path / "out", tmp_path / "out" / name):
        again = weights.load(path)
        assert_same(one.params, again.params)
        assert again.preprocess.section() | {"center": ""} == one.preprocess.section() | {
            "center": ""
        }
        if layout != "big_vision":  # whose files do not say at what scale a training began
            for side in ("image", "text"):
                mine, its = (getattr(p.model, side) for p in (one, again))
                for option in ("width", "heads", "embed_dim", "activation", "pool", "causal"):
                    assert getattr(mine, option, None) == getattr(its, option, None), option


def test_a_layout_that_cannot_express_a_model_says_why(tmp_path, made):
    def refused(section, layout, reason, **changes):
        changed = dict(section)
        for side, options in changes.items():
            changed[side] = {**section[side], **options}
        with pytest.raises(ValueError, match=reason):
            weights.save(tmp_path / "out", pretrained(changed), layout)
        assert not list(tmp_path.iterdir())

    refused(
        CLIP, "huggingface", r"CLIPModel cannot express image.pool='mean'", image={"pool": "mean"}
    )
    refused(CLIP, "openai", r"activation \['gelu'\] \(there quick_gelu\)")
    refused(SIGLIP, "openai", r"cannot express .*a logit bias")
    refused(QUICK, "openai", "text.pool='eos'", text={"pool": "eos", "eos_id": 5})
    refused(CLIP, "big_vision", "cannot express .*a model without a bias")
    refused(SIGLIP, "openclip", "timm has no SigLIP tower of width 64")
    refused(RESNET, "huggingface", "CLIPModel cannot express image.pool=None")
    refused(CLIP, "openclip", "image.stem='conv'", image={"stem": "conv"})
    with pytest.raises(ValueError, match=r"Unknown layout 'hugging_face'.*huggingface"):
        weights.save(tmp_path / "out", made(CLIP), "hugging_face")
    with pytest.raises(ValueError, match=r"this layout is a \.npz file"):
        weights.save(tmp_path / "out.pt", made(SIGLIP), "big_vision")
    article = {"name": "shared_encoder", "image_size": 32, "context_length": 8, **TINY}
    model = models.create(**article, vocab_size=30, patch_size=8)
    one = weights.Pretrained(model, {}, Preprocess(32), None, {})
    with pytest.raises(ValueError, match="has a place for a SharedEncoder"):
        weights.save(tmp_path / "out", one, "huggingface")
    at_end = {"pool": "eos", "eos_id": 49_407}  # the largest, where OpenAI's looks
    weights.save(tmp_path / "a.pt", pretrained(QUICK | {"text": QUICK["text"] | at_end}), "openai")


def test_every_key_that_is_wrong_is_listed(tmp_path, made):
    path = saved(tmp_path / "out", made(CLIP), "huggingface") / "model.safetensors"
    tensors = load_file(path)
    del tensors["visual_projection.weight"], tensors["logit_scale"]
    dropped = [key for key in tensors if ".layers." in key]
    assert len(dropped) > 60
    for key in dropped:
        del tensors[key]
    tensors["more"] = np.zeros(3, np.float32)
    tensors["text_model.final_layer_norm.bias"] = np.zeros(63, np.float32)
    save_file(tensors, path)
    with pytest.raises(ValueError) as caught:
        weights.load(tmp_path / "out")
    message = str(caught.value)
    for problem in (
        *(f"{key} is missing" for key in dropped),
        "visual_projection.weight is missing",
        "logit_scale is missing",
        "more is left over",
        "text_model.final_layer_norm.bias has shape (63,), not (64,)",
    ):
        assert problem in message
    assert "\n" not in message


def test_weights_that_are_not_finite_are_reported(tmp_path, made):
    path = saved(tmp_path / "out", made(CLIP), "openclip") / "open_clip_model.safetensors"
    tensors = load_file(path)
    tensors["ln_final.weight"][3] = np.nan
    tensors["visual.proj"][0, 0] = np.inf
    save_file(tensors, path)
    with pytest.warns(UserWarning, match=r"2 of \d+ tensors hold NaN .*: visual.proj, ln_"):
        weights.load(tmp_path / "out")


def test_directories_without_one_clear_model(tmp_path, made):
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        weights.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no file of weights"):
        weights.load(tmp_path)
    path = saved(tmp_path / "out", made(CLIP), "huggingface")
    shutil.copy(path / "model.safetensors", path / "other.safetensors")
    with pytest.raises(ValueError, match=r"more than one file of weights: model.*, other.*Name"):
        weights.load(path)
    assert_same(weights.load(path / "other.safetensors").params, made(CLIP).params)
    (path / "other.safetensors").unlink()
    (path / "training_args.bin").write_bytes(b"x")  # a trainer's, no weights
    weights.load(path)
    (path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config.json beside it"):
        weights.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "blip"}, "model_type 'blip'; read here are: clip, siglip"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act='relu' is not known"),
        ({"vision_config": {"hidden_size": "x"}}, "hidden_size='x', not a positive integer"),
        ({"vision_config": {"num_channels": 1}}, "num_channels=1; only num_channels=3 is read"),
        ({"vision_config": {"image_size": 64}}, "position_embedding.weight has shape"),
        ({"text_config": {"num_hidden_layers": 1}}, "layers.1.* is left over"),
        ({"text_config": {"num_hidden_layers": 10**12}}, "10.* layers, not up to 1000"),
        ({"text_config": {"layer_norm_eps": [1]}}, r"ln_eps=\[1\] must be a number"),
        ({"text_config": {"hidden_act": []}}, "a value in the config beside it is of another"),
        ({"text_config": 3}, "a value in the config beside it is of another kind"),
        ({"projection_dim": "x"}, "embed_dim='x' must be a whole number"),
        ({"model_type": []}, "a value in the config beside it is of another kind"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, made, change, message):
    path = saved(tmp_path / "out", made(CLIP), "huggingface")
    values = json.loads((path / "config.json").read_text())
    for key, value in change.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as caught:
        weights.load(path)
    assert str(path) in str(caught.value)


def test_a_scale_may_have_a_dimension_and_masks_are_no_weights(tmp_path, made):
    path = saved(tmp_path / "out", made(CLIP), "openclip") / "open_clip_model.safetensors"
    tensors = load_file(path)
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    tensors["transformer.resblocks.0.attn_mask"] = np.zeros((77, 77), np.float32)
    save_file(tensors, path)
    assert_same(weights.load(tmp_path / "out").params, made(CLIP).params)


def test_openclip_takes_the_tokenizer_that_its_config_names(tmp_path, made):
    """CLIP's own, whatever lies beside it, where none is named; otherwise the one beside it."""
    clip, bert = ClipTokenizer(), WordPieceTokenizer(vocabulary=wordpiece_vocabulary(["a red cat"]))
    path = saved(tmp_path / "clip", made(CLIP), "openclip")
    save_huggingface(clip, path)
    loaded = weights.load(path)
    assert loaded.tokenizer.kind == "clip"
    weights.save(tmp_path / "bert", replace(loaded, tokenizer=bert), "openclip")
    config = json.loads((tmp_path / "bert" / "open_clip_config.json").read_text())
    text = config["model_cfg"]["text_cfg"]
    assert text["hf_tokenizer_name"] and text["tokenizer_kwargs"] == {"strip_sep_token": True}
    texts = ["a red cat", "red &amp; caf\u00e9", "a\u201dcat"]
    again = weights.load(tmp_path / "bert").tokenizer
    np.testing.assert_array_equal(again(texts, 12), bert(texts, 12))
    text["tokenizer_kwargs"] = {"clean": "odd"}
    (tmp_path / "bert" / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"clean.*odd.*not known.*without a tokenizer"):
        assert weights.load(tmp_path / "bert").tokenizer is None


def test_a_file_that_tells_no_activation_warns_or_is_told(tmp_path, made):
    one = made(LAYOUTS["openai"][0])
    weights.save(tmp_path / "model.pt", one, "openai")
    with pytest.warns(UserWarning, match=r"does not say which activation .* 'quick_gelu'"):
        assert weights.load(tmp_path / "model.pt").model.text.activation == "quick_gelu"
    assert weights.load(tmp_path / "model.pt", CLIP).model.text.activation == "gelu"
    with pytest.raises(ValueError, match=r"Unknown model 'ViT-B-33'.*ViT-B-32"):
        weights.load(tmp_path / "model.pt", "ViT-B-33")
    with pytest.raises(ValueError, match="does not hold the model"):
        weights.load(tmp_path / "model.pt", "ViT-B-32")


@pytest.mark.parametrize(
    ("name", "heads"), [("ViT-B-32", 12), ("ViT-H-14", 16), ("ViT-g-14", 16), ("ViT-bigG-14", 16)]
)
def test_a_bare_file_has_the_heads_of_the_published_models(name, heads):
    """No shape tells them, and OpenCLIP's larger towers have others than OpenAI's 64 wide."""
    section = {side: models.PRESETS[name][side] | {"depth": 1} for side in ("image", "text")}
    model = models.create("dual_encoder", **section)
    leaves = {path: leaf.shape for path, leaf in by_path(parameter_shapes(model)).items()}
    shapes = their_shapes(openclip.entries(model), leaves)
    found = openai.section_from_shapes(shapes, "gelu")
    assert (found["image"]["heads"], found["text"]["heads"]) == (heads, model.text.heads)
    narrow = shapes | {"visual.conv1.weight": (48, 3, 8, 8)}
    with pytest.raises(ValueError, match="image tower is 48 wide, and CLIP's heads are 64"):
        openai.section_from_shapes(narrow, "gelu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_type": "avg"}, "pool_type='avg' with final_ln_after_pool=False; read here are"),
        ({"attentional_pool": True, "pool_type": "avg"}, "pool_type='avg'; only pool_type='tok'"),
        ({"block_type": "custom"}, "block_type='custom'; only block_type=None is read"),
        ({"ls_init_value": 0.1}, "ls_init_value=0.1; only ls_init_value=None is read"),
        ({"timm_model_name": "vit_relpos_medium"}, "of timm's towers those of SigLIP are read"),
    ],
)
def test_openclip_s_options_that_are_not_built_here_are_refused(options, message):
    towers = {"vision_cfg": {"width": 64, **options}, "text_cfg": {}}
    with pytest.raises(ValueError, match=message):
        openclip.section({"embed_dim": 16, **towers}, {})


def test_big_vision_s_files_may_lack_a_head_and_have_scalars(tmp_path):
    """So400m of many languages has no last map of its texts."""
    one = pretrained(SIGLIP | {"text": SIGLIP["text"] | {"embed_dim": None}})
    weights.save(tmp_path / "a.npz", one, "big_vision")
    arrays = dict(np.load(tmp_path / "a.npz"))
    assert not any("head" in key for key in arrays) and arrays["params/t"].shape == (1,)
    scalars = {key: arrays[key].reshape(()) for key in ("params/t", "params/b")}
    np.savez(tmp_path / "b.npz", **arrays | scalars)
    for name in ("a.npz", "b.npz"):
        again = weights.load(tmp_path / name)
        assert again.model.text.embed_dim is None
        assert_same(again.params, one.params)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work directory of this library."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SOURCES, "squares", Squares)
        assert run.train(config(**{"steps": 4, "checkpoint_every": 3}), workdir)
    return workdir


def test_a_work_directory_is_a_model_too(tmp_path, trained):
    one = weights.load(trained)
    assert_same(weights.load(f"{trained}@4").params, one.params)
    first = weights.load(f"{trained}@3").params
    assert not np.array_equal(first["logit_scale"], one.params["logit_scale"])
    assert one.encode_text(["a red square"]).shape == (1, one.model.text.embed_dim)
    with pytest.raises(FileNotFoundError, match="No checkpoint of step 7"):
        weights.load(f"{trained}@7")


def test_training_begins_with_a_published_model(tmp_path, made, monkeypatch, capfd):
    """Whole but for its size, and one tower alone with a new head."""
    monkeypatch.setitem(SOURCES, "squares", Squares)
    one = pretrained(CLIP, ClipTokenizer())
    weights.save(tmp_path / "clip", one, "huggingface")
    # Newer configs name the end token, which has the largest id: what the recipe's pool takes.
    path = tmp_path / "clip" / "config.json"
    assert '"eos_token_id": 2,' in path.read_text()
    path.write_text(path.read_text().replace('"eos_token_id": 2,', '"eos_token_id": 49407,'))
    image = {**CLIP["image"], "image_size": 48}
    changes = {"model": {**CLIP, "image": image}, "tokenizer": {"name": "clip"}, "steps": 3}
    workdir = tmp_path / "run"
    assert run.train(config(**changes, init_from=str(tmp_path / "clip")), workdir)
    line = capfd.readouterr().err
    line = next(line for line in line.splitlines() if line.startswith("Parameters of"))
    assert "clip/model.safetensors: image/positional_embedding resized from 17 to 37; " in line
    assert "config.image.center is round, trained with floor" in line
    changes["model"]["text"] = {**CLIP["text"], "width": 32}
    changes |= {"init_skip": ("text/.*", ".*/projection/.*")}
    experiment = make_experiment(config(**changes))
    initial = find_initial(
        str(tmp_path / "clip"),
        experiment.abstract_state.params,
        experiment.model,
        skip=changes["init_skip"],
    )
    drawn = experiment.init()
    state = initial.state(drawn)
    assert_same(
        state.params["image"]["transformer"], jax.device_get(one.params["image"]["transformer"])
    )
    assert_same(state.params["text"], drawn.params["text"])
    assert_same(state.params["image"]["projection"], drawn.params["image"]["projection"])
    assert "begun anew: image/projection/kernel, text/" in initial.summary()
    changes["model"]["image"] = {**image, "activation": "quick_gelu"}
    other = make_experiment(config(**changes))
    reason = r"config.model.image.activation is 'quick_gelu', trained with 'gelu'"
    with pytest.raises(ValueError, match=reason):
        find_initial(str(tmp_path / "clip"), drawn.params, other.model, skip=("text/.*",))
    with pytest.raises(ValueError, match=r"config.init_skip: 'nothing' matches no parameter"):
        find_initial(str(tmp_path / "clip"), drawn.params, experiment.model, skip=("nothing",))


def test_numbers_of_files_encoded_at_once_do_not_matter(tmp_path, made, monkeypatch):
    one = pretrained(CLIP, ClipTokenizer())
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(5)]
    together = one.encode_image(pictures)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    monkeypatch.setattr(weights.pretrained, "BATCH", 2)
    np.testing.assert_allclose(one.encode_image(pictures), together, atol=1e-6)
    scores = one.scores(together, one.encode_text(["one", "two", "three"]))
    assert scores.shape == (5, 3)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="hold no tokenizer"):
        made(CLIP).encode_text(["one"])


def test_memory_of_loading_and_saving_is_that_of_the_parameters(tmp_path):
    """Of a model of 200 MB, nearly all of which is one tensor, a process needs little more."""
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from tiny_pretrained import pretrained, CLIP
from vlrep_jax import weights
section = CLIP | {{"text": CLIP["text"] | {{"width": 512, "vocab_size": 100_000}}}}
if sys.argv[1] == "make":
    weights.save(sys.argv[2], pretrained(section), "openclip")
    sys.exit()

def peak():  # of this program alone: getrusage counts what the one had that started it
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
weights.load(sys.argv[3])  # what compiling and imports take is there before
before = peak()
loaded = weights.load(sys.argv[2])
size = sum(leaf.nbytes for leaf in __import__("jax").tree.leaves(loaded.params))
read = peak()
weights.save(sys.argv[2] + "-back", loaded, "huggingface")
print(size, read - before, peak() - before)
"""

    def python(*argv):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, argv)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = saved(tmp_path / "small", pretrained(CLIP), "openclip")
    python("make", tmp_path / "large")
    size, reading, both = map(int, python("load", tmp_path / "large", small).split())
    assert size > 200e6
    assert 0.8 * size < reading < 1.3 * size and both < 1.3 * size
