"""Mixtures keep their weights and their parts' epochs; subsets are disjoint, whole and stay put."""

import logging
import pickle
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from data_files import write_csv, write_parquet, write_pictures
from emoji_data import ListSource, flat, grey_source
from tars import shards

from vlrep_jax.data.caption_choice import CAPTIONS, of_source
from vlrep_jax.data.order import order
from vlrep_jax.data.pipeline import train_batches
from vlrep_jax.data.sources.files import Files
from vlrep_jax.data.sources.mixture import Mixture
from vlrep_jax.data.sources.sample import Sample, key_hashes
from vlrep_jax.data.sources.subset import Subset, held_out
from vlrep_jax.data.tokenizers import train_bpe
from vlrep_jax.data.transforms import TRANSFORMS


def table(folder, name, rows):
    folder.mkdir(exist_ok=True)
    (folder / "p.png").write_bytes(flat(7))
    held = [{"image": "p.png", "caption": f"{name} {i}", "id": f"{name}{i}"} for i in range(rows)]
    path = write_csv(folder / f"{name}.csv", held)
    return {"name": "files", "path": str(path), "key": "id"}


@pytest.fixture
def parts(tmp_path):
    return {
        "big": {"source": table(tmp_path, "b", 40), "weight": 0.7},
        "mid": {"source": table(tmp_path, "m", 10), "weight": 0.2},
        "small": {"source": table(tmp_path, "s", 3), "weight": 0.1},
    }


def test_any_stretch_holds_each_part_by_its_weight(parts):
    mixed = Mixture(parts)
    stream = order(mixed, 1)
    names = np.array([mixed[stream[i]].key.split("/")[0] for i in range(500)])
    for start, length in ((0, 500), (0, 10), (123, 100), (371, 30)):
        stretch = names[start : start + length]
        for name, share in (("big", 0.7), ("mid", 0.2), ("small", 0.1)):
            assert abs((stretch == name).sum() - share * length) <= 2.5


def test_weights_count_by_their_ratio_alone(parts):
    other = {name: part | {"weight": part["weight"] * 30} for name, part in parts.items()}
    one, two = order(Mixture(parts), 1), order(Mixture(other), 1)
    assert [one[i] for i in range(200)] == [two[i] for i in range(200)]


def test_each_part_reshuffles_at_epochs_of_its_own(parts):
    mixed = Mixture(parts)
    stream = order(mixed, 1)
    keys = [mixed[stream[i]].key for i in range(900)]
    for name, size in (("big", 40), ("mid", 10), ("small", 3)):
        own = [key for key in keys if key.startswith(name)]
        epochs = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert len(epochs) >= 9
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len(set(map(tuple, epochs))) > 3
    assert stream[10**12] == order(mixed, 1)[10**12]  # found without those before it


def test_a_part_has_the_same_order_whatever_the_others_are(parts):
    def of_big(mixed):
        stream = order(mixed, 1)
        keys = (mixed[stream[i]].key for i in range(200))
        return [key for key in keys if key.startswith("big")][:80]

    fewer = {name: parts[name] for name in ("small", "big")}
    assert of_big(Mixture(parts)) == of_big(Mixture(fewer))


def test_parts_of_one_size_have_orders_of_their_own(tmp_path):
    sections = {n: {"source": table(tmp_path, n, 20), "weight": 1} for n in ("x", "y")}
    mixed = Mixture(sections)
    stream = order(mixed, 1)
    keys = [mixed[stream[i]].key for i in range(40)]
    numbers = {n: [key[3:] for key in keys if key.startswith(n)] for n in sections}
    assert numbers["x"] != numbers["y"] and sorted(numbers["x"]) == sorted(numbers["y"])


@pytest.mark.parametrize("position", [0, 1, 7, 100, 12345])
def test_what_was_seen_is_counted_by_part(parts, position):
    mixed = Mixture(parts)
    stream = order(mixed, 1)
    seen = mixed.parts_seen(position)
    assert sum(part["samples"] for part in seen.values()) == position
    assert seen["small"]["epochs"] == seen["small"]["samples"] / 3
    if position <= 100:
        names = [mixed[stream[i]].key.split("/")[0] for i in range(position)]
        assert {n: part["samples"] for n, part in seen.items()} == {
            n: names.count(n) for n in mixed.names
        }


def test_the_log_says_each_parts_share_and_epoch(parts, caplog):
    with caplog.at_level(logging.INFO):
        Mixture(parts)
    assert (
        "mixture, part mid: 10 samples, 20.00% of the stream, an epoch every 50 samples"
        in caplog.messages
    )


def test_parts_have_caption_choices_of_their_own(parts):
    parts["mid"]["caption"] = {"name": "first", "templates": ["a photo of {}"]}
    nested = Mixture({"in": {"source": {"name": "mixture", "parts": parts}, "weight": 1}})
    for mixed, top in ((Mixture(parts), ""), (nested, "in/")):
        choice = pickle.loads(pickle.dumps(of_source(mixed, CAPTIONS["first"])))
        rng = np.random.default_rng(0)
        texts = {s.key: choice(s, rng) for s in mixed.__getitems__(range(len(mixed)))}
        assert texts[f"{top}big/b4"] == "b 4" and texts[f"{top}mid/m4"] == "a photo of m 4"
    assert Mixture(parts).fingerprint() != nested.fingerprint()


def batches(source, **changed):
    options = {
        "transform": partial(TRANSFORMS["squash"], size=4),
        "caption": CAPTIONS["first"],
        "tokenizer": train_bpe(["a photo of b m s 0123456789"], 300),
        "context_length": 24,
        "batch_size": 12,
        "seed": 5,
    }
    return train_batches(source, **(options | changed))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_mixture_trains_the_same_on_any_hosts_and_after_resuming(parts, hosts):
    parts["small"]["caption"] = {"name": "first", "templates": ["a photo of {}"]}
    whole = batches(Mixture(parts))
    expected = [next(whole) for _ in range(6)]
    found = []
    for host in range(hosts):
        options = {"process_index": host, "process_count": hosts}
        iterator = batches(Mixture(parts), **options)
        next(iterator), next(iterator)
        resumed = batches(Mixture(parts), **options)
        resumed.restore(iterator.state())
        found.append([next(resumed) for _ in range(4)])
    for step in range(4):
        for name in ("pair_ids", "text"):
            joined = np.concatenate([part[step][name] for part in found])
            np.testing.assert_array_equal(joined, expected[2 + step][name])
    texts = {train_bpe(["a photo of b m s 0123456789"], 300).decode(row) for row in joined}
    assert any(text.startswith("a photo of s") for text in texts)


def test_identities_of_parts_do_not_meet_but_those_of_pictures_do(tmp_path):
    write_pictures(tmp_path)
    one, two = table(tmp_path, "x", 2), table(tmp_path, "y", 2)
    rows = [{"image": "p.png", "caption": "c", "id": "same"}]
    for name, section in (("x", one), ("y", two)):
        write_csv(tmp_path / f"{name}.csv", rows)
        section["identity"] = "id"
    mixed = Mixture({"a": {"source": one, "weight": 1}, "b": {"source": two, "weight": 1}})
    assert mixed[0].identity == "a/same" != mixed[1].identity
    one["identity"] = two["identity"] = "image"
    mixed = Mixture({"a": {"source": one, "weight": 1}, "b": {"source": two, "weight": 1}})
    assert mixed[0].identity == mixed[1].identity != ""


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"weight": 0}, r"part 'big' of a mixture: weight=0 must be"),
        ({"weight": "much"}, "weight='much' must be a number"),
        ({"waight": 1}, r"part 'big' .* has \['source', 'waight', 'weight'\]; expected"),
        ({"caption": {"name": "none"}}, r"its caption is not one of \['emoji', 'first'"),
        (
            {"caption": {"name": "first", "x": 1}},
            r"part 'big' of a mixture: its caption has no option 'x'",
        ),
        ({"source": {"name": "none"}}, r"part 'big' of a mixture: Unknown source 'none': known:"),
        ({"source": {"name": "files"}}, r"part 'big' .*missing a required argument: 'path'"),
    ],
)
def test_a_wrong_part_is_named(parts, changed, line):
    parts["big"] |= changed
    with pytest.raises(ValueError, match=line):
        Mixture(parts)


def test_a_mixture_without_parts_is_refused():
    with pytest.raises(ValueError, match="needs parts"):
        Mixture({})


def keyed(keys):
    return ListSource([Sample(b"", (key,), key, {}) for key in keys])


def keys_of(source):
    return [sample.key for sample in source.__getitems__(range(len(source)))]


@pytest.mark.parametrize("make", [keyed, None])
def test_the_parts_of_a_split_are_complements_of_about_the_share(make, tmp_path):
    keys = [f"k{i}" for i in range(2000)]
    # The second source hashes its keys itself.
    source = make(keys) if make else Files(table(tmp_path, "k", 2000)["path"], key="id")
    train = keys_of(Subset(source, share=0.1))
    held = keys_of(Subset(source, share=0.1, part="held_out"))
    assert sorted(train + held) == sorted(keys) and not set(train) & set(held)
    assert abs(len(held) - 200) < 60  # 13 is the standard deviation
    assert train == [key for key in keys if key in set(train)]  # the order stays
    assert set(held) < set(keys_of(Subset(source, share=0.3, part="held_out")))
    salted = set(keys_of(Subset(source, share=0.1, part="held_out", salt="2")))
    assert len(salted & set(held)) < 60  # 20 expected of independent splits


def test_new_samples_never_move_old_ones():
    keys = [f"k{i}" for i in range(500)]
    before = set(keys_of(Subset(keyed(keys), share=0.2, part="held_out")))
    more = [f"new{i}" for i in range(700)] + keys[::-1]
    after = set(keys_of(Subset(keyed(more), share=0.2, part="held_out")))
    assert after & set(keys) == before


def test_hashes_of_keys_never_change():
    """Numbers that other versions have to give too: splits of old runs stay what they were."""
    hashes = key_hashes(["a", "é"])
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [0x2F42665B399EF840, 0x2F19F3EF8BBF1ACB]
    found = held_out(key_hashes(f"k{i}" for i in range(50)), 0.1)
    # By Python's own integers: blake2b of the key xor that of the salt, then splitmix64's end.
    assert np.flatnonzero(found).tolist() == [1, 7, 8, 19, 25, 29, 44]


def test_listed_keys_are_left_out_and_unknown_ones_do_no_harm(tmp_path, caplog):
    path = tmp_path / "duplicates.txt"
    path.write_bytes("k3\r\nk1\n\nelsewhere\nküche\n".encode())
    source = keyed(["k1", "k2", "k3", "küche", "k5"])
    with caplog.at_level(logging.INFO):
        subset = Subset(source, exclude=str(path))
    assert keys_of(subset) == ["k2", "k5"]
    assert f"3 of 4 keys in {path} are in the source" in caplog.text
    assert subset.fingerprint() != Subset(source).fingerprint()


def test_the_first_samples_of_what_is_left():
    source = keyed(f"k{i}" for i in range(100))
    assert keys_of(Subset(source, first=3)) == ["k0", "k1", "k2"]
    train = keys_of(Subset(source, share=0.5))
    assert keys_of(Subset(source, share=0.5, first=7)) == train[:7]


def test_a_subset_of_row_groups_is_read_by_row_groups(tmp_path):
    rows = [{"image": b"x", "caption": f"c{i}", "id": f"k{i}"} for i in range(100)]
    path = write_parquet(tmp_path / "t.parquet", rows, row_group_size=10)
    whole = Files(path, key="id", window=20)
    subset = Subset(whole, share=0.3)
    assert subset.blocks().sum() == len(subset) and len(subset.blocks()) == 10
    stream = order(subset, 3)
    epoch = [stream[i] for i in range(len(subset))]
    assert sorted(epoch) == list(range(len(subset)))
    groups = [int(subset[i].key[1:]) // 10 for i in epoch]
    assert max(len(set(groups[i : i + 20])) for i in range(0, len(subset), 20)) <= 5


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"share": 1.0}, r"share=1.0 must be in \[0, 1\)"),
        ({"part": "test"}, r"part='test' must be one of \('train', 'held_out'\)"),
        ({"first": -1}, "first=-1"),
        ({"part": "held_out"}, "Nothing is left of 8 samples"),
    ],
)
def test_wrong_subsets_say_so(changed, line):
    with pytest.raises(ValueError, match=line):
        Subset(grey_source(8), **changed)


def test_a_subset_of_a_mixture_is_refused(parts):
    with pytest.raises(ValueError, match="Mixture has an order of its own"):
        Subset({"name": "mixture", "parts": parts}, share=0.1)
    with pytest.raises(FileNotFoundError):
        Subset(grey_source(8), exclude="/none")


def test_subsets_and_parts_of_shards_read_in_sequence_keep_windows(tmp_path):
    section = {"name": "tar", "path": shards(tmp_path, 4, 6), "window": 4}
    subset = Subset(section, share=0.3, salt="a")
    stream = order(subset, 3, 8)
    assert sorted(stream[i] for i in range(len(subset))) == list(range(len(subset)))
    begun = [subset[stream[i]].key.partition("/")[0] for i in range(len(subset))]
    assert sum(a != b for a, b in pairwise(begun)) < len(subset) - 4
    mixture = Mixture({"a": {"source": section, "weight": 1}})
    assert sorted(order(mixture, 3)[i] for i in range(24)) == list(range(24))
    dealt = Mixture({"a": {"source": {**section, "lanes": 2}, "weight": 1}})
    with pytest.raises(ValueError, match="part 'a' of a mixture: lanes=2 must divide"):
        order(dealt, 3, 8)
