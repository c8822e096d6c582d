"""What a rule matches, which rule wins, and what a rule that fits nothing is told."""

import jax
import jax.numpy as jnp
import optax
import pytest

from vlrep_jax.rules import match_rules, path_of


def flat(tree):
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_a_regex_matches_from_the_start_of_a_component_to_the_end():
    tree = {
        "bias": 0,
        "logit_bias": 0,
        "a": {"bias": 0, "bias_table": 0, "image": {"k": 0}},
        "image": {"k": 0},
    }

    def chosen(regex):
        return {
            path for path, hit in flat(match_rules([(regex, True)], tree, False)).items() if hit
        }

    assert chosen("bias") == {"bias", "a/bias"}
    assert chosen("image/.*") == {"image/k", "a/image/k"}
    assert chosen("^image/.*") == {"image/k"}
    assert chosen("a/bias|logit_bias") == {"a/bias", "logit_bias"}


def test_paths_of_lists_and_fields():
    state = optax.EmaState(count=jnp.zeros(()), ema=[jnp.zeros(())])
    assert set(flat({"x": state})) == {"x/count", "x/ema/0"}


def test_the_first_rule_that_applies_wins():
    tree = {"image": {"kernel": 0, "bias": 0}, "text": {"kernel": 0}}
    values = match_rules([("bias", "a"), ("image/.*", "b")], tree, "c")
    assert values == {"image": {"kernel": "b", "bias": "a"}, "text": {"kernel": "c"}}


def test_a_rule_in_the_shadow_of_others_still_matches():
    tree = {"kernel": 0}
    assert match_rules([(".*", 1), ("kernel", 2)], tree, 0) == {"kernel": 1}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("imag/.*", 1), r"'imag/\.\*' matches no parameter; the nearest are: image/"),
        (("kernl", 1), "nearest are: image/kernel, text/kernel"),
        (("(", 1), r"'\(' is not a regular expression"),
        ("ab", r"a rule is \(regex, value\), not 'ab'"),
        (("kernel",), r"a rule is \(regex, value\), not \('kernel',\)"),
    ],
)
def test_a_broken_rule_is_named(rule, message):
    tree = {"image": {"kernel": 0, "bias": 0}, "text": {"kernel": 0}, "logit_scale": 0}
    with pytest.raises(ValueError, match=message):
        match_rules([rule], tree, 0)


def test_defaults_may_match_nothing():
    assert match_rules([("bias", 1)], {"kernel": 0}, 0, require_match=False) == {"kernel": 0}
