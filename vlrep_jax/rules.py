"""Rules over parameter paths, ((regex, value), ...): one language for decay, freezing, sharding.

A path is `image/transformer/layers/mlp/fc1/kernel`. A rule applies where its regex matches the
path's end, from the start of a component: `bias` is every parameter of that name but not
`logit_bias`, `image/.*` is the image tower, also inside an optimizer's moments, whose paths end in
their parameter's; `^image/.*` is only what lies at the root. The first rule that applies wins.

Ranks would be no substitute: layers stacked for a scan have one more dimension.
"""

import difflib
import heapq
import re

import jax


def path_of(key_path) -> str:
    """Returns `a/b/c` for a key path as `jax.tree_util.tree_map_with_path` passes it."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def match_rules(rules, tree, default, *, require_match: bool = True):
    """Returns a tree like `tree` that holds at every leaf the value of the first rule that applies.

    Args:
      rules: ((regex, value), ...).
      tree: any pytree; its leaves may be abstract.
      default: the value where no rule applies.
      require_match: whether a rule that applies nowhere, most often a misspelling, is an error.

    Raises:
      ValueError: a rule that is no (regex, value), a broken regex, or one that applies nowhere.

    Example:
      match_rules([("bias", 0.0)], {"fc": {"kernel": k, "bias": b}}, 1.0)
      == {"fc": {"kernel": 1.0, "bias": 0.0}}
    """
    rules = [_compiled(rule) for rule in rules]
    paths = [path_of(key_path) for key_path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for regex, pattern, _ in rules if require_match else ():
        if not any(pattern.fullmatch(path) for path in paths):
            near = ", ".join(_nearest_paths(regex, paths))
            raise ValueError(f"the rule {regex!r} matches no parameter; the nearest are: {near}.")

    def value_at(key_path, _):
        path = path_of(key_path)
        return next((value for _, pattern, value in rules if pattern.fullmatch(path)), default)

    return jax.tree_util.tree_map_with_path(value_at, tree)


def _compiled(rule):
    """(regex, pattern, value) of a rule."""
    if isinstance(rule, str) or len(rule) != 2 or not isinstance(rule[0], str):
        raise ValueError(f"a rule is (regex, value), not {rule!r}.")
    regex, value = rule
    try:
        return regex, re.compile(f"(?:.*/)?(?:{regex})"), value
    except re.error as error:
        raise ValueError(f"the rule {regex!r} is not a regular expression: {error}.") from error


def _nearest_paths(regex, paths):
    """The three paths that hold, over as many components, what looks most like the regex."""
    width = regex.count("/") + 1

    def likeness(path):
        parts = path.split("/")
        return max(
            difflib.SequenceMatcher(None, regex, "/".join(parts[i : i + width])).ratio()
            for i in range(len(parts))
        )

    return heapq.nlargest(3, paths, key=likeness)
