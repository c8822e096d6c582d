"""Several rows a picture: each caption once, one pair, augmentation of each row's own."""

from functools import partial

import numpy as np
import pytest
from emoji_data import ListSource, encoded, flat, noise

from vlrep_jax.data.caption_choice import CAPTIONS
from vlrep_jax.data.pipeline import train_batches
from vlrep_jax.data.sources import Sample
from vlrep_jax.data.tokenizers import train_bpe
from vlrep_jax.data.transforms import TRANSFORMS

TOKENIZER = train_bpe([f"picture {i} said {j}" for i in range(9) for j in range(5)], 300)


def source(count=8, captions=3):
    samples = [
        Sample(flat(i), tuple(f"picture {i} said {j}" for j in range(captions)), str(i), {})
        for i in range(count)
    ]
    return ListSource(samples)


def batches(made, **changed):
    options = {
        "transform": partial(TRANSFORMS["squash"], size=4),
        "caption": CAPTIONS["random"],
        "tokenizer": TOKENIZER,
        "context_length": 16,
        "batch_size": 12,
        "seed": 5,
        "captions_per_image": 3,
    }
    return train_batches(made, **(options | changed))


def texts(batch):
    return [TOKENIZER.decode(row) for row in batch["text"]]


def test_neighbouring_rows_are_one_picture_with_each_of_its_captions():
    iterator = batches(source())
    seen = []
    for _ in range(4):
        batch = next(iterator)
        for start in range(0, 12, 3):
            rows = slice(start, start + 3)
            (number,) = set(batch["image"][rows, 0, 0, 0].tolist())
            assert sorted(texts(batch)[rows]) == [f"picture {number} said {j}" for j in range(3)]
            assert len(set(batch["pair_ids"][rows])) == 1
            seen.append(number)
    assert sorted(seen[:8]) == sorted(seen[8:]) == list(range(8))  # every sample once an epoch
    assert len(set(batch["pair_ids"])) == 4


def test_fewer_captions_than_rows_repeat():
    batch = next(batches(source(captions=2), captions_per_image=4))
    for start in range(0, 12, 4):
        held = texts(batch)[start : start + 4]
        assert len(set(held)) == 2 and held[:2] == held[2:]


def test_each_row_is_augmented_for_itself():
    made = ListSource([Sample(encoded(noise(40, 40)), ("a", "b", "c"), "1", {})])
    transform = partial(TRANSFORMS["augment"], size=8)
    batch = next(batches(made, transform=transform, batch_size=3))
    assert (batch["image"][0] != batch["image"][1]).any()


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("options", [{}, {"cache": True}, {"num_workers": 2}])
def test_hosts_workers_and_resuming_change_nothing(hosts, options):
    whole = batches(source(), **options)
    expected = [next(whole) for _ in range(5)]
    for host in range(hosts):
        options = {"process_index": host, "process_count": hosts}
        one = batches(source(), **options)
        next(one), next(one)
        resumed = batches(source(), **options)
        resumed.restore(one.state())
        rows = slice(host * 12 // hosts, (host + 1) * 12 // hosts)
        for step in range(2, 5):
            found = next(resumed)
            for name, value in found.items():
                np.testing.assert_array_equal(value, expected[step][name][rows])


def test_pictures_of_one_meaning_stay_one_pair():
    samples = [Sample(flat(i), ("A cat", f"x{i}"), str(i), {}) for i in range(4)]
    batch = next(batches(ListSource(samples), captions_per_image=2, batch_size=8))
    assert len(set(batch["pair_ids"])) == 1
    told_apart = [sample._replace(identity=sample.key) for sample in samples]
    batch = next(batches(ListSource(told_apart), captions_per_image=2, batch_size=8))
    assert len(set(batch["pair_ids"])) == 4


def test_bad_pictures_are_replaced_in_each_of_their_rows():
    made = source()
    made._samples[3] = made._samples[3]._replace(image=b"x")
    iterator = batches(made, max_bad_fraction=1)
    found = [next(iterator) for _ in range(2)]
    bad = np.concatenate([batch["bad"] for batch in found])
    assert bad.reshape(-1, 3).sum(1).tolist().count(3) == 1 and bad.sum() == 3
    assert dict(iterator.bad_reasons) == {"format": 3}


@pytest.mark.parametrize("count", [0, 5, 8])
def test_the_rows_of_a_host_have_to_hold_whole_pictures(count):
    with pytest.raises(ValueError, match=rf"captions_per_image={count} must divide the 12 rows"):
        batches(source(), captions_per_image=count)


def test_a_position_under_another_number_of_captions_is_refused():
    state = batches(source()).state()
    with pytest.raises(ValueError, match="another pipeline"):
        batches(source(), captions_per_image=1).restore(state)
