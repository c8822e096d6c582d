"""Order, resuming, bad samples and padding of the batches that training and evaluation see."""

import ast
import itertools
import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from emoji_data import ListSource, emoji_dir, flat, grey_source

import vlrep_jax.data
from vlrep_jax.data.caption_choice import CAPTIONS
from vlrep_jax.data.pipeline import eval_batches, train_batches
from vlrep_jax.data.preprocess import Preprocess
from vlrep_jax.data.sources import EmojiCaptions, Sample
from vlrep_jax.data.tokenizers import train_bpe
from vlrep_jax.data.transforms import TRANSFORMS

TOKENIZER = train_bpe([f"number {i}" for i in range(50)], 300)


def batches(source, **changed):
    options = {
        "transform": partial(TRANSFORMS["squash"], size=4),
        "caption": CAPTIONS["first"],
        "tokenizer": TOKENIZER,
        "context_length": 16,
        "batch_size": 8,
        "seed": 5,
    }
    return train_batches(source, **(options | changed))


def taken(iterator, count):
    with_end = list(itertools.islice(iterator, count))
    iterator.close()
    return with_end


def assert_equal(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def emoji_batches(**changed):
    source = EmojiCaptions(emoji_dir(), "unseen")
    options = {
        "transform": partial(TRANSFORMS["augment"], size=16),
        "caption": CAPTIONS["emoji"],
        "batch_size": 64,
        "context_length": 40,
    }
    return batches(source, **(options | changed))


def test_a_batch_is_arrays_of_the_promised_shapes():
    (batch,) = taken(emoji_batches(), 1)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "image": ((64, 16, 16, 3), "uint8"),
        "text": ((64, 40), "int32"),
        "pair_ids": ((64,), "int32"),
        "bad": ((64,), "bool"),
        "truncated": ((64,), "bool"),
    }
    assert not batch["bad"].any()


@pytest.mark.parametrize("changed", [{}, {"num_threads": 1}, {"prefetch": 1}, {"cache": True}])
def test_batches_depend_on_the_seed_alone(changed):
    assert_equal(taken(emoji_batches(**changed), 9), taken(emoji_batches(), 9))


def test_another_seed_gives_another_order_and_augmentation():
    one, other = (taken(emoji_batches(seed=seed), 1)[0] for seed in (1, 2))
    assert (one["pair_ids"] != other["pair_ids"]).any()
    source = grey_source(1)
    crops = [
        taken(batches(source, seed=s, transform=partial(TRANSFORMS["augment"], size=4)), 1)[0][
            "image"
        ]
        for s in (1, 2)
    ]
    assert (crops[0] != crops[1]).any()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_see_the_batches_that_one_host_sees(hosts):
    whole = taken(emoji_batches(), 8)
    parts = [
        taken(emoji_batches(process_index=host, process_count=hosts), 8) for host in range(hosts)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
        for rows in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


@pytest.mark.parametrize("stop", [0, 1, 6, 7, 13])  # an epoch ends within batch 6
def test_continuing_anywhere_gives_the_uninterrupted_batches(stop):
    whole = taken(emoji_batches(), 16)
    first = emoji_batches()
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.state()))
    first.close()
    assert state["next_batch"] == stop
    second = emoji_batches()
    next(second)
    second.restore(state)
    assert_equal(taken(second, 16 - stop), whole[stop:])


def test_continuing_on_another_number_of_hosts_gives_the_same_rows():
    whole = taken(emoji_batches(), 5)
    one = emoji_batches()
    next(one), next(one)
    second = emoji_batches(process_index=1, process_count=2)
    second.restore(one.state())
    one.close()
    assert_equal(taken(second, 3), [{k: v[32:] for k, v in b.items()} for b in whole[2:]])


def test_a_run_on_4_then_2_then_8_hosts_sees_the_global_batches_of_one():
    whole, state, number = taken(emoji_batches(), 6), None, 0
    for count in (4, 2, 8):
        hosts = [emoji_batches(process_index=i, process_count=count) for i in range(count)]
        if state is not None:
            for host in hosts:
                host.restore(state)
        for _ in range(2):
            parts = [next(host) for host in hosts]
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            assert_equal([joined], [whole[number]])
            number += 1
        states = [host.state() for host in hosts]
        assert all(each == states[0] for each in states)
        state = states[0]
        for host in hosts:
            host.close()


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 6},
        {"batch_size": 16},
        {"context_length": 20},
        {"transform": partial(TRANSFORMS["squash"], size=5)},
        {"caption": CAPTIONS["random"]},
        {"tokenizer": train_bpe(["other"], 280)},
    ],
)
def test_a_position_of_another_pipeline_is_refused(changed):
    state = batches(grey_source(20)).state()
    other = batches(grey_source(20), **changed)
    with pytest.raises(ValueError, match=r"batch 0.* belongs to another pipeline"):
        other.restore(state)
    with pytest.raises(ValueError, match="another pipeline"):
        batches(grey_source(21)).restore(state)


def test_every_epoch_holds_every_sample_once_in_another_order():
    seen = [b["image"][:, 0, 0, 0] for b in taken(batches(grey_source(20)), 10)]
    epochs = np.concatenate(seen).reshape(4, 20)
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_picture_and_text_of_a_row_belong_together():
    for batch in taken(batches(grey_source(20)), 3):
        for image, text in zip(batch["image"], batch["text"], strict=True):
            assert TOKENIZER.decode(text) == f"number {image[0, 0, 0]}"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"image": b"nothing"}, "format"),
        ({"image": flat(7)[:50]}, "truncated"),
        ({"captions": ()}, "no_caption"),
        ({"captions": (" \n",)}, "no_caption"),
    ],
)
def test_a_bad_sample_is_replaced_flagged_and_counted(broken, reason, caplog):
    source = grey_source(20, i7=broken)
    with caplog.at_level(logging.WARNING):
        iterator = batches(source)
        found = list(itertools.islice(iterator, 10))
    whole = taken(batches(grey_source(20)), 10)
    bad = np.concatenate([b["bad"] for b in found])
    was = np.concatenate([b["image"][:, 0, 0, 0] for b in whole])
    now = np.concatenate([b["image"][:, 0, 0, 0] for b in found])
    np.testing.assert_array_equal(bad, was == 7)
    assert bad.sum() == 4 and 7 not in now
    np.testing.assert_array_equal(now[~bad], was[~bad])
    assert dict(iterator.bad_reasons) == {reason: 4}
    assert [r.getMessage() for r in caplog.records] == [
        f"bad sample 7: {reason} (replaced; more are only counted)"
    ]
    iterator.close()
    assert_equal(taken(batches(source), 10), found)  # the replacement is no matter of chance


def test_more_bad_samples_than_allowed_stop_the_run():
    source = grey_source(20, i3={"image": b""}, i4={"image": b"x"}, i5={"image": b"x"})
    with pytest.raises(
        ValueError, match=r"of 256 samples are bad .*'format'.*max_bad_fraction=0.1"
    ):
        taken(batches(source), 60)
    assert len(taken(batches(source, max_bad_fraction=0.2), 60)) == 60


def test_a_source_of_only_bad_samples_ends_in_a_line():
    source = ListSource([Sample(b"", ("text",), "key0", {})])
    with pytest.raises(ValueError, match=r"16 samples in a row are bad \(\{'empty': 16\}\).*key0"):
        next(batches(source))


def test_a_long_caption_is_cut_flagged_and_keeps_its_end():
    source = grey_source(8, i2={"captions": ("number " * 40,)})
    (batch,) = taken(batches(source), 1)
    row = int(np.flatnonzero(batch["image"][:, 0, 0, 0] == 2)[0])
    assert np.flatnonzero(batch["truncated"]).tolist() == [row]
    assert batch["text"][row, -1] == TOKENIZER.eos_id


def test_the_same_caption_or_identity_gives_one_pair_id():
    same_text = grey_source(8, i2={"captions": ("A  Cat",)}, i6={"captions": ("a cat",)})
    (batch,) = taken(batches(same_text), 1)
    ids = dict(zip(batch["image"][:, 0, 0, 0].tolist(), batch["pair_ids"].tolist(), strict=True))
    assert ids[2] == ids[6] and len(set(ids.values())) == 7
    assert min(ids.values()) >= 0
    # One thing drawn twice stays one thing, whatever it is called this time.
    drawn_twice = grey_source(8, i2={"identity": "x"}, i6={"identity": "x"})
    (batch,) = taken(batches(drawn_twice), 1)
    ids = dict(zip(batch["image"][:, 0, 0, 0].tolist(), batch["pair_ids"].tolist(), strict=True))
    assert ids[2] == ids[6] and len(set(ids.values())) == 7


def test_two_artists_of_one_emoji_are_a_pair():
    train = EmojiCaptions(emoji_dir(), "train")
    held = {s.key: s.identity for s in train.__getitems__(range(len(train)))}
    assert held["twemoji/1f98a"] == held["openmoji/1f98a"] != held["twemoji/1f98b"]


def test_batch_sizes_that_hosts_cannot_share_name_the_nearest():
    with pytest.raises(ValueError, match=r"batch_size=10 must be a multiple of 4 hosts; .* is 8"):
        batches(grey_source(4), batch_size=10, process_count=4)
    with pytest.raises(ValueError, match=r"batch_size=3 must be a multiple of 4 hosts; .* is 4"):
        eval_batches(grey_source(4), preprocess=Preprocess(4), batch_size=3, process_count=4)
    with pytest.raises(ValueError, match=r"process_index=4 must be in \[0, 4\)"):
        batches(grey_source(4), process_index=4, process_count=4)
    with pytest.raises(ValueError, match="no samples"):
        batches(ListSource([]))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_sees_each_sample_once_padded_to_full_batches(hosts):
    found = []
    for host in range(hosts):
        made = eval_batches(
            grey_source(13),
            preprocess=Preprocess(4),
            batch_size=8,
            process_index=host,
            process_count=hosts,
        )
        assert len(made) == 2
        found.append(list(made))
        assert_equal(list(made), found[-1])
    for part in found:
        assert [b["image"].shape for b in part] == [(8 // hosts, 4, 4, 3)] * 2
    index = np.concatenate([part[n]["index"] for n in range(2) for part in found])
    weights = np.concatenate([part[n]["weights"] for n in range(2) for part in found])
    grey = np.concatenate([part[n]["image"][:, 0, 0, 0] for n in range(2) for part in found])
    assert index.tolist() == [*range(13), -1, -1, -1]
    assert weights.tolist() == [1] * 13 + [0] * 3
    assert grey.tolist() == [*range(13), 0, 0, 0]


def test_a_corrupt_picture_in_evaluation_has_no_weight_and_is_counted():
    made = eval_batches(grey_source(6, i2={"image": b"?"}), preprocess=Preprocess(4), batch_size=4)
    for _ in range(2):  # counted anew every time
        first, second = made
        assert first["weights"].tolist() == [1, 1, 0, 1] and first["index"].tolist() == [0, 1, 2, 3]
        assert second["weights"].tolist() == [1, 1, 0, 0]
        assert dict(made.bad_reasons) == {"format": 1}


def test_evaluation_batches_hold_the_first_caption_when_asked():
    made = eval_batches(
        grey_source(3),
        preprocess=Preprocess(4),
        batch_size=2,
        tokenizer=TOKENIZER,
        context_length=16,
    )
    assert [TOKENIZER.decode(row) for b in made for row in b["text"]] == [
        "number 0",
        "number 1",
        "number 2",
        "",
    ]


def test_data_imports_neither_jax_nor_configs_nor_tensorflow():
    for path in Path(vlrep_jax.data.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {
                "jax",
                "flax",
                "optax",
                "ml_collections",
                "tensorflow",
            }
            own = ("vlrep_jax.data", "vlrep_jax.answers")
            assert all(n.startswith(own) for n in names if "vlrep_jax" in n)
