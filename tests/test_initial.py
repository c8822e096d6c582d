"""Training in stages: a run begins with another's parameters, and with nothing else of it."""

import jax
import numpy as np
import pytest
from tiny_models import CAPTIONS, FRAME, FUSED, IMAGES, PAIR, TOKENS, TOWERS, drawn
from tiny_recipe import Squares, config

from vlrep_jax import metrics, models, optim, run, weights
from vlrep_jax.checkpoint import Checkpoints
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.sources import SOURCES
from vlrep_jax.data.tokenizers import load_tokenizer
from vlrep_jax.experiment import make_experiment, make_tokenizer
from vlrep_jax.initial import _changed, _heads_differ, find_initial
from vlrep_jax.models.positions import resize_image_positions

LARGER = {"steps": 3, "model.image.image_size": 32, "model.text.context_length": 12}
FSDP = {"parallel.data": 4, "parallel.fsdp": 2}


@pytest.fixture(autouse=True)
def squares(monkeypatch):
    monkeypatch.setitem(SOURCES, "squares", Squares)


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory):
    """The work directory of a run at 16 pixels and 8 tokens with checkpoints of steps 3 and 4."""
    workdir = tmp_path_factory.mktemp("stage-1")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SOURCES, "squares", Squares)
        assert run.train(config(**{"steps": 4, "checkpoint_every": 3}), workdir)
    return workdir


def found(init_from, experiment):
    return find_initial(str(init_from), experiment.abstract_state.params, experiment.model)


def saved(workdir, step):
    checkpoints = Checkpoints(workdir, read_only=True)
    loaded = checkpoints.parameters(step)
    checkpoints.close()
    return loaded


def assert_same(tree, other, but=()):
    """Equal bits in every leaf whose path does not hold one of some words."""
    leaves = zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(other), strict=True)
    for (path, one), two in leaves:
        name = jax.tree_util.keystr(path)
        if not any(word in name for word in but):
            np.testing.assert_array_equal(one, two, err_msg=name)


@pytest.mark.parametrize("layout", [{}, FSDP], ids=["whole", "fsdp"])
def test_a_larger_model_takes_over_all_but_the_size_of_its_positions(stage_1, layout):
    experiment = make_experiment(config(**LARGER, **layout))
    drawn = experiment.init()
    initial = found(stage_1, experiment)
    state = initial.state(drawn)
    trained = saved(stage_1, 4)
    positions = "['positional_embedding']"
    assert_same(state.params, trained, but=[positions])
    image, text = (state.params[side]["positional_embedding"] for side in ("image", "text"))
    expected = resize_image_positions(trained["image"]["positional_embedding"], 17)
    np.testing.assert_allclose(image, expected, atol=1e-7)
    assert (image[0] == trained["image"]["positional_embedding"][0]).all()
    fresh = drawn.params["text"]["positional_embedding"]
    np.testing.assert_array_equal(text[:8], trained["text"]["positional_embedding"])
    np.testing.assert_array_equal(text[8:], fresh[8:])
    # The rest is that of a run which begins, laid out as its step wants it.
    assert_same(state.ema, state.params)
    assert_same((state.step, state.opt_state), (drawn.step, drawn.opt_state))
    for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(drawn), strict=True):
        assert leaf.sharding == like.sharding and leaf.dtype == like.dtype
    assert initial.summary() == (
        f"Parameters of {stage_1}, step 4: image/positional_embedding resized from 5 to 17; "
        "text/positional_embedding extended from 8 to 12."
    )


def test_the_moving_average_is_taken_and_a_step_can_be_named(stage_1):
    experiment = make_experiment(config())
    checkpoints = Checkpoints(stage_1, read_only=True)
    states = {n: checkpoints.restore(n, experiment.abstract_state)[0] for n in (3, 4)}
    checkpoints.close()
    drawn = experiment.init()
    for name, step in ((f"{stage_1}@3", 3), (stage_1, 4)):
        assert_same(found(name, experiment).state(drawn).params, states[step].ema)
    assert found(stage_1, experiment).summary() == f"Parameters of {stage_1}, step 4."
    assert not np.array_equal(states[3].ema["logit_scale"], states[4].ema["logit_scale"])
    assert not np.array_equal(states[4].params["logit_scale"], states[4].ema["logit_scale"])


def test_the_second_stage_trains_and_then_continues_without_the_first(stage_1, tmp_path, capfd):
    moved = tmp_path / "first"
    moved.symlink_to(stage_1)
    changed = LARGER | {"init_from": str(moved), "freeze": ("image/transformer/.*",)}
    workdir = tmp_path / "second"
    assert run.train(config(**changed), workdir)
    assert f"Parameters of {moved}, step 4: image/pos" in capfd.readouterr().err
    losses = [row["train/loss"] for row in metrics.read(workdir) if "train/loss" in row]
    assert len(losses) == 3 and np.isfinite(losses).all()
    # What is frozen shows where it came from.
    last, trained = saved(workdir, 3), saved(stage_1, 4)
    assert_same(last["image"]["transformer"], trained["image"]["transformer"])
    assert not np.array_equal(
        last["text"]["token_embedding"]["embedding"],
        trained["text"]["token_embedding"]["embedding"],
    )
    assert (workdir / "tokenizer.json").read_bytes() == (stage_1 / "tokenizer.json").read_bytes()
    moved.unlink()
    assert run.train(config(**changed), workdir)
    assert "Continuing from step 3 of 3." in capfd.readouterr().err


def test_everything_that_does_not_fit_is_named(stage_1):
    changed = {"model.image.pool": "mean", "model.text.depth": 3, "model.bias_init": -10.0}
    with pytest.raises(ValueError) as caught:
        found(stage_1, make_experiment(config(**changed)))
    message = str(caught.value)
    assert f"config.init_from={stage_1} does not fit config.model" in message
    assert "logit_bias is missing" in message and "image/class_embedding is left over" in message
    kernel = "text/transformer/layers/mlp/fc1/kernel has shape (2, 16, 64), not (3, 16, 64)"
    assert kernel in message and "\n" not in message


def test_parts_that_compute_otherwise_than_in_training_are_refused():
    def made(fusion=None, **changed):
        section = FUSED | {"fusion": FUSED["fusion"] | (fusion or {})} | changed
        return models.create("fusion_encoder", **section)

    assert list(_changed(made(), made({"activation": "quick_gelu"}))) == [
        ("fusion", "activation", "gelu", "quick_gelu")
    ]
    decoder = CAPTIONS["decoder"] | {"ln_eps": 1e-6}
    changed = _changed(*(models.create("coca", **CAPTIONS | d) for d in ({}, {"decoder": decoder})))
    assert [part for part, *_ in changed] == ["decoder"]
    frames = [{"name": "vit", **FRAME, "activation": name} for name in ("gelu", "quick_gelu")]
    video = [{"name": "video", **TOWERS["video"], "frame": frame} for frame in frames]
    changed = _changed(*(models.create("dual_encoder", **PAIR | {"image": one}) for one in video))
    assert [part for part, *_ in changed] == ["image.frame"]
    # One answer's head has the shape of a judge's.
    assert _heads_differ(made(), made(answers=["yes"]))
    assert _heads_differ(made(answers=["no", "yes"]), made(answers=["yes", "no"]))
    assert not _heads_differ(made(), models.create("dual_encoder", **PAIR))


def test_a_head_of_other_answers_is_refused_unless_it_begins_anew(tmp_path):
    section = {"name": "fusion_encoder", **FUSED, "answers": ["no", "yes"]}
    model = models.create(**section)
    params, preprocess = drawn(model, IMAGES, TOKENS), Preprocess(8)
    sections = {"model": section, "image": preprocess.section()}
    loaded = weights.Pretrained(model, params, preprocess, None, sections)
    weights.save(tmp_path / "m", loaded, "vlrep")
    other = models.create(**section | {"answers": ["yes", "no"]})
    find_initial(str(tmp_path / "m"), params, model)
    with pytest.raises(ValueError, match=r"config\.model\.answers are not those that head/"):
        find_initial(str(tmp_path / "m"), params, other)
    assert len(find_initial(str(tmp_path / "m"), params, other, skip=["head/.*"]).drawn) == 2


def test_what_is_no_run_or_no_step_of_it_is_refused(stage_1, tmp_path):
    experiment = make_experiment(config())
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or directory"):
        found(tmp_path / "nowhere", experiment)
    with pytest.raises(FileNotFoundError, match=r"No checkpoint of step 7 .*; there are: 3, 4"):
        found(f"{stage_1}@7", experiment)


def test_token_ids_keep_their_meaning(stage_1):
    """What a BPE learnt is taken over, though other captions would teach another."""
    initial = found(stage_1, make_experiment(config()))
    other = config(**{"data.source": {"name": "squares", "count": 9}})
    learnt = load_tokenizer(stage_1 / "tokenizer.json").fingerprint()
    assert initial.tokenizer(other).fingerprint() == learnt != make_tokenizer(other).fingerprint()
    with pytest.raises(ValueError, match=r"config.tokenizer is 'clip', but .* another \('bpe'"):
        initial.tokenizer(config(tokenizer={"name": "clip"}))


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_no_optimizer_begins_with_values_of_the_parameters(name):
    """`Initial.state` keeps the state that was made for other values."""
    like = {"w": np.ones((4, 4), np.float32), "bias": np.ones(4, np.float32)}
    tx = optim.make_optimizer(name, schedule=1e-3, params=like)
    assert_same(tx.init(like), tx.init(jax.tree.map(lambda x: x * 3, like)))
