"""Learning rates at steps where they can be worked out by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vlrep_jax.optim import SCHEDULES, constant, cosine, linear, rsqrt


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (cosine(2.0, 110, 10, end=1.0), {0: 0, 5: 1, 10: 2, 60: 1.5, 110: 1, 200: 1}),
        (cosine(2.0, 100), {0: 2, 25: 1 + math.sqrt(0.5), 50: 1, 100: 0}),
        (linear(2.0, 110, 10), {0: 0, 5: 1, 10: 2, 60: 1, 110: 0, 200: 0}),
        (linear(2.0, 100, end=1.0), {0: 2, 50: 1.5}),
        (constant(2.0, 100, 4), {0: 0, 1: 0.5, 4: 2, 1000: 2}),
        (constant(2.0), {0: 2}),
        (rsqrt(2.0, 100, 10, timescale=10), {0: 0, 5: 1, 10: 2, 40: 1, 1000: 0.2}),
        (rsqrt(2.0, timescale=3), {0: 2, 9: 1}),
    ],
)
def test_schedule_at_known_steps(schedule, points):
    got = [schedule(jnp.asarray(step)) for step in points]
    np.testing.assert_allclose(got, [*points.values()], rtol=1e-6, atol=1e-7)


def test_every_schedule_is_swapped_by_name():
    for schedule in SCHEDULES.values():
        assert schedule(0.5, total_steps=10, warmup_steps=5)(5) == 0.5


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match=r"warmup_steps=10 must be .* below total_steps=10"):
        cosine(1.0, 10, 10)
