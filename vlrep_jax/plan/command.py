"""What `vlrep plan` prints."""

import json

from ml_collections import ConfigDict

from vlrep_jax.plan import text, topology, variants


def run(
    config: ConfigDict,
    topology_name: str,
    *,
    label: str,
    as_json: bool = False,
    sweep: bool = False,
    advice: bool = True,
) -> dict:
    """Plans a config for a topology, and prints it.

    Args:
      config: of a recipe.
      topology_name: see `topology.find`.
      label: how the recipe is called in what is printed.
      as_json: print the JSON object that is returned instead of text.
      sweep: compare combinations of remat, chunks, FSDP and loss, and name the best.
      advice: where the step does not fit, compile changes that may make it fit.

    Returns:
      The plan by its documented keys; with `sweep` and `best`, or with `advice`, where asked for.

    Raises:
      ValueError: a wrong config or topology.
      ModuleNotFoundError: libtpu is missing.
    """
    place = topology.find(topology_name)
    made = variants.planned(config, place, {}, variants.to_stderr)
    found = {"recipe": label, **made.to_json()}
    lines = [text.page(made, label)]
    if sweep:
        rows = variants.sweep(config, place, variants.to_stderr)
        chosen = variants.best(rows)
        found |= {
            "sweep": [{"change": change, **each.to_json()} for change, each in rows],
            "best": chosen and chosen[0],
        }
        lines += ["", text.table([(variants.label(change), each) for change, each in rows])]
        lines += ["", f"best: {variants.label(chosen[0])}" if chosen else "None of these fits."]
    elif advice and not made.fits:
        rows = variants.advise(config, place, variants.to_stderr)
        found["advice"] = [{"change": change, **each.to_json()} for change, each in rows]
        lines += ["", *_advice(rows)]
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines))
    return found


def _advice(rows):
    if not rows:
        return ["Nothing is left to change but the batch, the model or the number of chips."]
    fitting = [variants.label(change) for change, each in rows if each.fits]
    verdict = f"It would fit with: {' or '.join(fitting)}." if fitting else "None of these fits:"
    return [verdict, text.table([(variants.label(change), each) for change, each in rows])]
