"""Every recipe builds abstractly with its golden count and its paper's numbers; no key is dead."""

import ast
import copy
import functools
from dataclasses import fields
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict
from tiny_recipe import Squares, config

import vlrep_jax
from vlrep_jax import cli, recipes
from vlrep_jax.build import bind, plain
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.experiment import keep_programs, make_experiment, make_tokenizer
from vlrep_jax.optim import parameter_count

CONFIGS = Path(__file__).parent.parent / "configs"
# Parameters of every recipe, with its argument if it has one: total, image size, context length.
GOLDEN = {
    "clip_article.py": (124_195_585, 224, 77),
    "clip_rn50.py": (102_007_137, 224, 77),
    "clip_vit_b16.py": (149_620_737, 224, 77),
    "clip_vit_b32.py": (151_277_313, 224, 77),
    "clip_vit_l14.py": (427_616_513, 224, 77),
    "clip_vit_l14.py:224": (427_616_513, 224, 77),
    "clip_vit_l14.py:336": (427_944_193, 336, 77),
    "clipa_vit_l16.py": (427_542_017, 112, 16),
    "clipa_vit_l16.py:96": (427_522_561, 96, 8),
    "clipa_vit_l16.py:224": (427_704_833, 224, 32),
    "coca_vit_b32.py": (253_560_065, 224, 76),
    "flip_vit_l16.py": (427_704_833, 224, 32),
    "flip_vit_l16.py:tune": (427_704_833, 224, 32),
    "fusion_quickstart.py": (2_051_074, 48, 16),
    "generator_gan.py": (3_207_302, 48, 16),
    "quickstart.py": (1_380_993, 48, 16),
    "siglip_vit_b16.py": (203_155_970, 224, 64),
    "vild_article.py": (149_620_736, 224, 77),
    "video_quickstart.py": (962_881, 32, 16),
    "video_quickstart.py:mean": (850_081, 32, 16),
    "vqa_quickstart.py": (1_804_065, 48, 24),
}
# arXiv:2103.00020, tables 18 and 20; what is in none of the papers' tables is left out.
CLIP = {
    "batch_size": 32_768,
    "steps": 390_625,  # 32 epochs of 400 million pairs
    "optimizer.name": "adamw",
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.98,
    "optimizer.eps": 1e-6,
    "optimizer.weight_decay": 0.2,
    "schedule.name": "cosine",
    "schedule.warmup_steps": 2000,
    "max_logit_scale": 100.0,
    "data.transform.name": "random_crop",
    "tokenizer.name": "clip",
    "loss.name": "softmax",
    "ema_decay": 0.0,
    "freeze": [],
}
FLIP = {
    "batch_size": 65_536,
    "steps": 195_490,  # 10,000 epochs of ImageNet's 1,281,167, 32 of LAION-400M
    "schedule.peak": 1.024e-3,
    "schedule.warmup_steps": 390,
    "optimizer.b2": 0.95,
    "model.image.patch_keep": 0.5,
}
CLIPA = {
    "batch_size": 65_536,
    "steps": 195_490,
    "schedule.peak": 2.048e-3,
    "schedule.warmup_steps": 800,
    "optimizer.b2": 0.95,
}
PAPERS = {
    "clip_rn50.py": CLIP | {"schedule.peak": 5e-4, "optimizer.b2": 0.999, "optimizer.eps": 1e-8},
    "clip_vit_b16.py": CLIP | {"schedule.peak": 5e-4},
    "clip_vit_b32.py": CLIP | {"schedule.peak": 5e-4},
    "clip_vit_l14.py": CLIP | {"schedule.peak": 4e-4},
    # One more epoch of 400 million pairs (section 3.2).
    "clip_vit_l14.py:336": CLIP | {"schedule.peak": 2e-5, "steps": 12_207},
    # arXiv:2212.00794, and its public configuration
    "flip_vit_l16.py": CLIP | FLIP,
    "flip_vit_l16.py:tune": CLIP
    | FLIP
    | {"schedule.peak": 1.024e-5, "steps": 1954, "model.image.patch_keep": 1.0},
    # arXiv:2305.07017, and its public configuration
    "clipa_vit_l16.py": CLIP | CLIPA,
    "clipa_vit_l16.py:96": CLIP | CLIPA,
    "clipa_vit_l16.py:224": CLIP
    | CLIPA
    | {"batch_size": 32_768, "schedule.peak": 1.024e-4, "steps": 4000},
    # The articles name no hyper-parameters but the loss and the temperature.
    "clip_article.py": CLIP | {"schedule.peak": 5e-4, "loss.name": "clip_article"},
    "vild_article.py": CLIP | {"schedule.peak": 5e-4, "loss.name": "vild"},
    # arXiv:2205.01917, section 4.1
    "coca_vit_b32.py": CLIP | {"captioning_weight": 2.0},
    # arXiv:2303.15343
    "siglip_vit_b16.py": {
        "batch_size": 32_768,
        "optimizer.name": "adamw",
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.95,
        "optimizer.weight_decay": 1e-4,
        "schedule.peak": 1e-3,
        "loss.name": "sigmoid",
        "tokenizer.lower_case": True,
        "tokenizer.pad_id": 1,
        "image.mode": "squash",
        "image.mean": [0.5, 0.5, 0.5],
        "image.std": [0.5, 0.5, 0.5],
        "data.transform.name": "squash",
    },
}


@functools.cache
def load(name):
    return cli.load_config(str(CONFIGS / name), [])


def flat(section, prefix=""):
    values = {}
    for key, value in section.items():
        deeper = isinstance(value, dict) and value
        values |= flat(value, f"{prefix}{key}.") if deeper else {f"{prefix}{key}": value}
    return values


def test_every_recipe_is_listed():
    files = {path.name for path in CONFIGS.glob("*.py")}
    assert {name.split(":")[0] for name in GOLDEN} == files
    # The others are of no paper but of minutes on two cores.
    quick = {name for name in files if name.endswith("quickstart.py")} | {"generator_gan.py"}
    assert {name.split(":")[0] for name in PAPERS} | quick == files


@pytest.mark.parametrize("name", GOLDEN)
def test_a_recipe_builds_with_its_golden_count(name):
    """Nothing is allocated, and no data is opened: the paths are a user's to fill in."""
    experiment = make_experiment(load(name))
    params = experiment.abstract_state.params
    total = parameter_count(params)
    assert (total, experiment.image_size, experiment.context_length) == GOLDEN[name]


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_has_its_papers_numbers(name):
    values = flat(plain(load(name)))
    assert {key: values[key] for key in PAPERS[name]} == PAPERS[name]
    if name != "siglip_vit_b16.py":
        model = make_experiment(load(name)).model
        scale = getattr(model, "scale_init", None) or 1 / model.temperature
        assert scale == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.name)
def test_a_recipe_says_how_to_run_it_and_what_to_expect(path):
    header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    command = f"Run: vlrep train --config=configs/{path.name}"
    assert command in header and "Cost: " in header and "Expected" in header


@pytest.mark.parametrize("name", [name for name in PAPERS if "siglip" not in name])
def test_a_recipe_without_its_path_says_what_to_fill_in(name):
    experiment = make_experiment(load(name))
    tokenizer = make_tokenizer(load(name))
    with pytest.raises(ValueError, match=r"path of the TFDS data set is empty.*source\.path=DIR"):
        experiment.train_batches(tokenizer)


def test_an_argument_that_a_recipe_does_not_know_is_refused():
    with pytest.raises(ValueError, match="image size of 224 or 336, not '448'"):
        load("clip_vit_l14.py:448")


# No key is dead: each is read somewhere, and a misspelt one is an error.


def names_read():
    """Every attribute that a file other than recipes.py reads."""
    package = Path(vlrep_jax.__file__).parent
    names = set()
    for path in package.glob("*.py"):
        if path.name != "recipes.py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    names.add(f"{owner(node.value)}.{node.attr}")
    return names


def owner(node):
    """The last name of what an attribute is read from: `self.config` -> config."""
    return getattr(node, "attr", getattr(node, "id", ""))


def test_every_key_of_the_base_recipe_is_read():
    read = names_read()
    # `config[key]` in check_keys looks at some more; here they must be used by name.
    assert {key for key in recipes.base() if f"config.{key}" not in read} == set()
    assert set(recipes.base().image) == {f.name for f in fields(Preprocess)} - {
        "size",
        "rgb",
        "frames",
    }
    for section in ("data", "parallel"):
        keys = recipes.base()[section].keys()
        assert {key for key in keys if f"{section}.{key}" not in read} == set()


def everything(wanted):
    """Builds all that a config describes, data included."""
    experiment = make_experiment(wanted)
    tokenizer = make_tokenizer(wanted)
    experiment.train_batches(tokenizer).close()
    experiment.evaluations()


FULL = plain(config())
FULL["clip_norm"] = 1.0
FULL["data"]["source"] = {"name": "squares", "count": 16}
FULL["evals"] = {"own": {"name": "retrieval", "source": FULL["data"]["source"], "chunk": 8}}
# These may be left out, and are then what they are by default.
FULL["loss"] = {"name": "vild", "sum_directions": False}


def changed(path, new_key):
    """FULL with a key spelt otherwise."""
    section = other = copy.deepcopy(FULL)
    *parents, last = path.split(".")
    for name in parents:
        section = section[name]
    section[new_key] = section.pop(last)
    return ConfigDict(other)


def paths(section, prefix=""):
    for key, value in section.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from paths(value, f"{prefix}{key}.")


# Names of evaluations are a user's own.
OWN_NAMES = ("evals.own",)


@pytest.mark.parametrize("path", [p for p in paths(FULL) if p not in OWN_NAMES])
def test_a_misspelt_key_anywhere_is_an_error_that_shows_it(path, monkeypatch):
    monkeypatch.setitem(SOURCES, "squares", Squares)
    wrong = path.split(".")[-1] + "x"
    with pytest.raises(ValueError) as caught:
        everything(changed(path, wrong))
    message = str(caught.value)
    # A name that is gone is said to be missing; of any other key, the word as it was written.
    gone = path.endswith(".name") or path in ("evals.own.source",)
    assert gone or wrong in message, message
    assert "\n" not in message


def test_the_config_of_these_misspellings_is_right_itself(monkeypatch):
    monkeypatch.setitem(SOURCES, "squares", Squares)
    everything(ConfigDict(FULL))


def test_values_that_make_no_sense_are_refused():
    for path, value, message in [
        ("parallel.wiring", "pmpa", "Unknown wiring 'pmpa': did you mean 'pmap'"),
        ("steps", 0, "config.steps=0 must be at least 1"),
        ("ema_decay", 1.0, r"config.ema_decay=1.0 must be in \[0, 1\)"),
        ("freeze", ("imagee/.*",), "'imagee/.*' matches no parameter; the nearest are"),
        ("freeze", (".*",), "leaves no parameter to train"),
        ("parallel.fsdp", 3, "do not fit 8 devices"),
        ("schedule.warmup_steps", 6, "warmup_steps=6 must be .* below total_steps=6"),
        ("loss.name", "sotfmax", "Unknown loss 'sotfmax': did you mean 'softmax'"),
        ("optimizer.name", "adam", "Unknown optimizer 'adam': did you mean 'adamw'"),
        ("model.name", "ViT-B-23", "Unknown model 'ViT-B-23': did you mean 'ViT-B-32'"),
        ("keep_checkpoints", 0, "config.keep_checkpoints=0 must be at least 1"),
        ("seed", -1, "config.seed=-1 must not be negative"),
        ("parallel.fsdp", 0, "do not fit 8 devices"),
        ("optimizer.clip_norm", 1.0, "config.optimizer has no key 'clip_norm'; clip_norm stands"),
        ("clip_norm", -1.0, "config.clip_norm=-1.0 must not be negative"),
        ("captioning_weight", -1.0, "config.captioning_weight=-1.0 must not be negative"),
        ("captioning_weight", 2.0, "captioning_weight=2.0 with DualEncoder: a CoCa's decoder"),
        ("matching_weight", -1.0, "config.matching_weight=-1.0 must not be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_experiment(config(**{path: value}))


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("steps", 2.5, "int"),
        ("steps", True, "int"),
        ("batch_size", "16", "int"),
        ("freeze", "image/.*", "tuple"),
        ("loss", "softmax", "ConfigDict"),
        ("ema_decay", "0.9", "float"),
    ],
)
def test_values_of_another_type_are_refused(key, value, kind):
    # Written anew: a ConfigDict itself refuses to change the type of what it holds.
    with pytest.raises(ValueError, match=rf"config\.{key}=.* must be {kind}"):
        make_experiment(ConfigDict({**plain(config()), key: value}))


def test_a_misspelt_option_of_a_part_of_a_transform_is_one_line(monkeypatch):
    monkeypatch.setitem(SOURCES, "squares", Squares)
    wanted = config(**{"data.transform": {"name": "augment", "affine": {"degres": 3.0}}})
    with pytest.raises(ValueError, match=r"config\.data\.transform: .*'degres'"):
        make_experiment(wanted).train_batches(make_tokenizer(wanted))


def test_compiled_programs_are_kept_where_a_recipe_says_unless_jax_was_told_before(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        for said, found in (("", None), (f"{tmp_path}", f"{tmp_path}"), ("late", f"{tmp_path}")):
            keep_programs(config(compilation_cache=said))
            assert jax.config.jax_compilation_cache_dir == found
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert recipes.base().compilation_cache


def test_a_section_binds_keyword_only_options_but_not_what_each_call_gives():
    def score(rows, texts=None, *, sets):
        return rows, texts, sets

    bound = bind({"score": score}, {"name": "score", "sets": ("a",)}, "evaluation")
    assert bound(1) == (1, None, ["a"])  # sections are plain: a tuple is a list
    with pytest.raises(ValueError, match="evaluation 'score' has no option 'rows'"):
        bind({"score": score}, {"name": "score", "rows": 1}, "evaluation")
