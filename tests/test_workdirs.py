"""What reading a work directory leaves alone, and what a damaged one is told as."""

import jax
import numpy as np
import pytest
from tiny_recipe import config

from vlrep_jax import embed, run, workdirs
from vlrep_jax.build import plain
from vlrep_jax.checkpoint import Checkpoints
from vlrep_jax.data.tokenizers import FileTokenizer
from vlrep_jax.experiment import check_vocabulary
from vlrep_jax.models import create

STATE = {"a": np.arange(6.0, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
LIKE = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    STATE,
)


def with_steps(workdir, *steps):
    checkpoints = Checkpoints(workdir)
    for step in steps:
        checkpoints.save(step, jax.tree.map(jax.numpy.asarray, STATE), {"at": step}, {})
    checkpoints.close()
    return workdir / "checkpoints"


def test_a_reader_leaves_alone_what_a_training_run_is_writing(tmp_path):
    unfinished = with_steps(tmp_path, 3) / "9.orbax-checkpoint-tmp-1"
    unfinished.mkdir()
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.steps() == [3]
    state, data = reader.restore(3, LIKE)
    reader.close()
    assert data == {"at": 3} and unfinished.exists()
    np.testing.assert_array_equal(state["a"], STATE["a"])


def test_evaluating_a_run_without_checkpoints_makes_no_directory(tmp_path):
    workdirs.write_json(tmp_path / "config.json", plain(config()))
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        run.load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_from_before_a_key_was_known_is_read_and_continued_with_its_default(tmp_path):
    with_steps(tmp_path, 3)
    (tmp_path / "tokenizer.json").write_text("{}")
    older = plain(config())
    del older["chunks"], older["init_from"], older["image"]["interpolation"]
    workdirs.write_json(tmp_path / "config.json", older)
    assert plain(workdirs.read_config(tmp_path)) == plain(config())
    assert workdirs.check_same_run(tmp_path, config(chunks=2))  # what a device holds may change
    with pytest.raises(ValueError, match=r"init_from was '', now 'runs/first'"):
        workdirs.check_same_run(tmp_path, config(init_from="runs/first"))


def test_an_empty_step_directory_is_no_checkpoint_and_does_not_keep_its_step_from_being_saved(
    tmp_path,
):
    directory = with_steps(tmp_path, 3)
    (directory / "7").mkdir()
    assert Checkpoints(tmp_path).steps() == [3]
    with_steps(tmp_path, 7)
    again = Checkpoints(tmp_path)
    assert again.steps() == [3, 7]
    assert again.restore(7, LIKE)[1] == {"at": 7}


def test_a_damaged_checkpoint_is_one_line_with_what_to_do(tmp_path):
    directory = with_steps(tmp_path, 3)
    for path in (directory / "3" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"/3 is damaged: .* Name another step") as caught:
        Checkpoints(tmp_path).restore(3, LIKE)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"No checkpoint of step 4 .* there are: 3\."):
        Checkpoints(tmp_path).restore(4, LIKE)


def test_row_i_of_embedded_texts_is_line_i(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffa cat\r\n\r\na\u2028dog\n  \nlast\n".encode())
    assert embed.lines_of(path) == ["a cat", "", "a\u2028dog", "  ", "last"]


def test_a_tokenizer_whose_end_the_tower_would_not_find_is_refused():
    text = '{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "a"}}'
    tokenizer = FileTokenizer(tokenizer_json=text, pad_id=0, eos_id=1)
    model = create(**plain(config().model))
    with pytest.raises(ValueError, match=r"end of text is 1 of 3: set config.model.text.pool"):
        check_vocabulary(tokenizer, model)
