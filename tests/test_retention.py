"""Which checkpoints stay, worked by hand."""

import pytest

from vlrep_jax.retention import Keep

SCORES = {10: {"m": 0.5}, 20: {"m": 0.9}, 30: {}, 40: {"m": 0.9}, 50: {"m": 0.1}, 60: {}}


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(1), {60}),
        (Keep(3), {40, 50, 60}),
        (Keep(9), set(SCORES)),
        (Keep(1, every=20), {20, 40, 60}),
        (Keep(1, every=25), {50, 60}),
        (Keep(1, metric="m"), {40, 60}),  # the newer of two alike
        (Keep(1, metric="m", mode="min"), {50, 60}),
        (Keep(2, every=30, metric="m"), {30, 40, 50, 60}),
        (Keep(1, metric="other"), {60}),  # no step has it
    ],
)
def test_newest_every_and_best(keep, kept):
    assert keep.kept(SCORES) == kept


def test_the_newest_stays_however_bad_it_is():
    for mode in ("max", "min"):
        scores = {step: {"m": -step if mode == "max" else step} for step in range(1, 20)}
        assert Keep(1, metric="m", mode=mode).kept(scores) == {1, 19}
    assert Keep(1).kept({}) == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"newest": 0}, "keep_checkpoints=0 must be at least 1"),
        ({"every": -1}, "keep_every=-1 must not be negative"),
        ({"mode": "best"}, "keep_best.mode='best' must be 'max' or 'min'"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Keep(**options)
