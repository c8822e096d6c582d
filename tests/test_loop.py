"""The loop alone, with a train step that only counts."""

import jax.numpy as jnp
import pytest

from vlrep_jax.train import TrainState, fit


def fitted(steps=7, begin=0, stop_at=None, bad_at=None, log=3, evaluate=4, save=5):
    """(events, last step) of `fit` with a train step that only counts."""
    events, seen = [], []

    def step(state, batch):
        assert batch == int(state.step)
        assert len(seen) >= int(state.step) - begin - 1  # one step in flight, and no more
        return state._replace(step=state.step + 1), {"loss": jnp.float32(1.0)}

    def on_result(step, values):
        assert values["loss"] == 1
        seen.append(step)
        if step == bad_at:
            raise FloatingPointError(f"step {step} is bad")

    def on_step(step, values):
        events.append(f"log {step}" if values else f"{step}")

    state = TrainState(jnp.int32(begin), None, None, None)
    try:
        state = fit(
            state,
            step,
            iter(range(begin, 100)),
            steps=steps,
            on_step=on_step,
            on_result=on_result,
            save=lambda step, state: events.append(f"save {step}"),
            evaluate=lambda step, state: events.append(f"eval {step}"),
            log_every=log,
            eval_every=evaluate,
            checkpoint_every=save,
            should_stop=lambda _: stop_at is not None and str(stop_at) in " ".join(events).split(),
        )
    except FloatingPointError as error:
        return events, str(error)
    assert seen == [*range(begin + 1, int(state.step) + 1)]
    return events, int(state.step)


def test_the_loop_logs_saves_and_evaluates_when_due_and_at_the_end():
    expected = "eval 0, 1, 2, log 3, 4, eval 4, 5, save 5, log 6, log 7, eval 7, save 7"
    assert fitted() == (expected.split(", "), 7)


def test_a_loop_that_continues_does_not_evaluate_first():
    assert fitted(begin=5) == (["log 6", "log 7", "eval 7", "save 7"], 7)
    assert fitted(begin=7) == ([], 7)


def test_a_stopped_loop_saves_where_it_is():
    assert fitted(stop_at=2) == (["eval 0", "1", "2", "save 2"], 2)
    assert fitted(stop_at=0) == (["eval 0"], 0)  # nothing was done
    # What is due there is not saved again.
    assert fitted(stop_at=5)[0][-2:] == ["5", "save 5"]


@pytest.mark.parametrize("kind", ["log", "save", "evaluate"])
def test_a_result_is_seen_before_anything_is_made_of_its_step(kind):
    events, message = fitted(bad_at=4, **{"log": 50, "save": 50, "evaluate": 50} | {kind: 4})
    assert events == ["eval 0", "1", "2", "3"] and message == "step 4 is bad"


def test_a_loop_stopped_at_a_bad_step_saves_nothing():
    events, message = fitted(bad_at=2, stop_at=2)
    assert events == ["eval 0", "1", "2"] and message == "step 2 is bad"
