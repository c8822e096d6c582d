"""The command `vlrep`: flags in, one call out; a user's mistake is one line and exit code 2."""

import argparse
import inspect
import logging
import runpy
import shlex
import sys
from pathlib import Path

# What a wrong flag, file, value or environment raises; anything else is a fault of this library.
USER_ERRORS = (ValueError, OSError, ModuleNotFoundError, FloatingPointError)
USER_ERROR_CODE = 2
STOPPED_CODE = 42  # told to stop, state saved: run the same command again

REQUIRED = {
    "train": ("--config", "--workdir"),
    "eval": ("--workdir",),
    "embed": ("--workdir", "--images or --texts", "--out"),
    "plan": ("--config", "--topology"),
    "convert": ("--layout",),
    "export": ("--model", "--out"),
    "classify": ("--model", "--images", "--labels"),
}
CONFIG_HELP = (
    "--config.KEY=VALUE changes one value of the recipe, for example --config.seed=1 or "
    "--config.schedule.peak=1e-3."
)


def main(argv: list[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    args, config_args = parse(argv if argv is not None else sys.argv[1:])
    # Orbax warns of a reader's checkpoints being read only, which is what was asked for.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        sys.exit(args.run(args, config_args))
    except USER_ERRORS as error:
        if args.traceback:
            raise
        print(f"vlrep: error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_CODE)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own flags, and the `--config...` ones as they stand."""
    parser = argparse.ArgumentParser(
        prog="vlrep",
        description="Pretrain and use joint image-text representations in JAX.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = _command(commands, "train", _train, "Train a recipe, or continue where it stopped.")
    train.usage = "vlrep train --config=FILE[:ARG] --workdir=DIR [--config.KEY=VALUE ...]"
    train.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        help="such as configs/quickstart.py",
    )
    train.add_argument("--workdir", metavar="DIR", help="where checkpoints, metrics and report go")

    evaluate = _command(
        commands, "eval", _eval, "Evaluate a checkpoint again; writes DIR/eval-STEP.json."
    )
    evaluate.usage = "vlrep eval --workdir=DIR [--step=N] [--config.KEY=VALUE ...]"
    evaluate.add_argument("--workdir", metavar="DIR", help="of a training run")
    evaluate.add_argument(
        "--step", type=int, metavar="N", help="checkpoint; the newest if not given"
    )

    embed = _command(commands, "embed", _embed, "Embed pictures or texts with a trained model.")
    embed.usage = (
        "vlrep embed --workdir=DIR (--images=GLOB | --texts=FILE) --out=FILE.npz [--step=N]"
    )
    embed.add_argument("--workdir", metavar="DIR", help="of a training run")
    embed.add_argument("--step", type=int, metavar="N", help="checkpoint; default: newest")
    inputs = embed.add_mutually_exclusive_group()
    inputs.add_argument("--images", metavar="GLOB", help="picture files, such as 'photos/*.png'")
    inputs.add_argument("--texts", metavar="FILE", help="UTF-8 file with one text a line")
    embed.add_argument(
        "--out", metavar="FILE.npz", help="embeddings float32[n, d] and their inputs"
    )

    plan = _command(
        commands, "plan", _plan, "Say what a recipe needs and costs on devices that are not here."
    )
    plan.usage = "vlrep plan --config=FILE[:ARG] --topology=NAME [--json] [--sweep] [--config...]"
    plan.add_argument("--config", metavar="FILE[:ARG]", help="such as configs/clip_vit_b16.py")
    plan.add_argument(
        "--topology",
        metavar="NAME",
        help="chips, such as v5e:16x16, v4:4x4x8, v5p:8x8x8, v6e:4x4 or cpu:8",
    )
    plan.add_argument("--json", action="store_true", help="print JSON; docs/plan.md has its keys")
    plan.add_argument(
        "--sweep", action="store_true", help="compare remat, chunks, FSDP and losses; takes long"
    )
    plan.add_argument(
        "--no-advice",
        action="store_true",
        help="do not look for what would make a step fit that does not",
    )

    convert = _command(
        commands, "convert", _convert, "Write a model in another project's layout, without torch."
    )
    convert.usage = "vlrep convert SRC DST --layout=NAME [--preset=NAME]"
    convert.add_argument("src", metavar="SRC", help="a model's files, or the DIR of a training run")
    convert.add_argument("dst", metavar="DST", help="file or directory to write; not there yet")
    convert.add_argument(
        "--layout", metavar="NAME", help="huggingface, openclip, openai or big_vision"
    )
    convert.add_argument(
        "--preset", metavar="NAME", help="architecture, such as ViT-B-32, where SRC does not say"
    )

    export = _command(
        commands, "export", _export, "Write the towers as programs that only JAX is needed to run."
    )
    export.usage = "vlrep export --model=PATH --out=DIR"
    export.add_argument(
        "--model", metavar="PATH", help="a model's files, or the DIR of a training run"
    )
    export.add_argument("--out", metavar="DIR", help="directory to write; not there yet")

    classify = _command(
        commands, "classify", _classify, "Say which of some labels fits each picture."
    )
    classify.usage = (
        'vlrep classify --model=PATH --images=GLOB --labels="a cat,a dog" '
        "[--templates=...] [--json]"
    )
    classify.add_argument(
        "--model", metavar="PATH", help="a model's files, or the DIR of a training run"
    )
    classify.add_argument("--images", metavar="GLOB", help="picture files, such as 'photos/*.png'")
    classify.add_argument("--labels", metavar="A,B,...", help="names, separated by commas")
    classify.add_argument(
        "--templates",
        metavar="T;T;...",
        default="{}",
        help="prompts, such as 'a photo of a {}.;a drawing of a {}.'; a label is their mean",
    )
    classify.add_argument("--json", action="store_true", help="print one JSON object a picture")

    args, rest = parser.parse_known_args(argv)
    config_args = [arg for arg in rest if arg.startswith("--config.")]
    unknown = [arg for arg in rest if arg not in config_args]
    if unknown:
        from vlrep_jax.build import near

        flags = [f for a in args.parser._actions for f in a.option_strings] + ["--config.KEY=VALUE"]
        word = unknown[0].split("=")[0]
        args.parser.error(f"unknown argument {unknown[0]!r}; {near(word, flags)}")
    # Only now, so that a misspelt flag is told as such and not as the absence of the right one.
    for flag in REQUIRED[args.command]:
        if not any(getattr(args, name.removeprefix("--")) for name in flag.split(" or ")):
            args.parser.error(f"{flag} is required")
    return args, config_args


def _command(commands, name, run, summary):
    """A subcommand whose help begins with its summary."""
    takes_config = name in ("train", "eval", "plan")
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=CONFIG_HELP if takes_config else None,
        allow_abbrev=False,
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.set_defaults(run=run, parser=parser, command=name)
    return parser


def _version():
    from vlrep_jax import __version__

    return f"vlrep_jax {__version__}"


def _train(args, config_args):
    from vlrep_jax import run

    config = load_config(args.config, config_args)
    finished = run.train(config, Path(args.workdir))
    if not finished:
        print(
            "Stopped; what was trained is saved. To continue:",
            shlex.join(["vlrep", *sys.argv[1:]]),
            file=sys.stderr,
        )
        return STOPPED_CODE
    return 0


def _eval(args, config_args):
    from vlrep_jax import run

    run.evaluate(
        Path(args.workdir), args.step, override=lambda config: override_config(config, config_args)
    )
    return 0


def _embed(args, config_args):
    from vlrep_jax import run

    if config_args:
        raise ValueError(f"vlrep embed takes no {config_args[0]!r}: the model is what was trained.")
    run.embed(
        Path(args.workdir),
        Path(args.out),
        images=args.images,
        texts=args.texts,
        step=args.step,
    )
    return 0


def _convert(args, config_args):
    from vlrep_jax import weights

    _no_config(args, config_args)
    loaded = weights.load(args.src, args.preset)
    weights.save(args.dst, loaded, args.layout)
    print(f"Wrote {args.dst} ({args.layout}) from {args.src}.")
    return 0


def _classify(args, config_args):
    from vlrep_jax import classify
    from vlrep_jax.run import files

    _no_config(args, config_args)
    classify.run(
        args.model,
        files(args.images),
        args.labels.split(","),
        templates=args.templates.split(";"),
        as_json=args.json,
    )
    return 0


def _export(args, config_args):
    from vlrep_jax import weights
    from vlrep_jax.export import export_towers

    _no_config(args, config_args)
    loaded = weights.load(args.model)
    paths = export_towers(loaded.model, loaded.params, args.out, preprocess=loaded.preprocess)
    print(f"Wrote {args.out}: {', '.join(path.name for path in paths)}.")
    return 0


def _no_config(args, config_args):
    if config_args:
        raise ValueError(f"vlrep {args.command} takes no {config_args[0]!r}.")


def _plan(args, config_args):
    from vlrep_jax import plan

    plan.run(
        load_config(args.config, config_args),
        args.topology,
        label=Path(args.config).name,
        as_json=args.json,
        sweep=args.sweep,
        advice=not args.no_advice,
    )
    return 0


def load_config(path: str, overrides: list[str]):
    """The ConfigDict of a recipe file with `--config.key=value` words applied.

    Args:
      path: 'FILE' or 'FILE:ARG', ARG being passed to the file's get_config.
      overrides: words such as '--config.schedule.peak=1e-3'.

    Raises:
      ValueError: no such key (the near ones are listed), a value of another type, or an argument
        that the recipe does not take.
      FileNotFoundError: no such file.
    """
    from ml_collections import ConfigDict

    file, *arg = path.split(":", 1)
    if not Path(file).is_file():
        raise FileNotFoundError(f"--config={path}: there is no file {file!r}.")
    try:
        get_config = runpy.run_path(file).get("get_config")
        if get_config is None:
            raise ValueError(f"--config={path}: {file} has no function get_config.")
        _check_argument(get_config, arg, path)
        config = get_config(*arg)
    except ValueError:
        raise
    except Exception as error:  # the recipe is the user's code
        name = type(error).__name__
        raise ValueError(f"--config={path}: {name}: {' '.join(str(error).split())}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"--config={path}: get_config returned {type(config).__name__}, not a ConfigDict; "
            "begin with recipes.base()."
        )
    return override_config(config, overrides)


def _check_argument(get_config, arg, path):
    """Raises ValueError where a recipe is given an argument it does not take, or none it needs."""
    try:
        inspect.signature(get_config).bind(*arg)
    except TypeError:
        takes = "takes no argument" if arg else "needs an argument"
        raise ValueError(f"--config={path}: the recipe {takes}, --config=FILE:ARG.") from None


def override_config(config, overrides: list[str]):
    """The ConfigDict with `--config.key=value` words applied; errors as `load_config`."""
    from absl import flags
    from ml_collections import config_flags
    from ml_collections.config_flags.config_flags import UnsupportedOperationError

    for word in overrides:
        _check_override(config, word)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=overrides)
    try:
        values(["vlrep", *overrides])
    except (flags.Error, UnsupportedOperationError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    return values["config"].value.lock()


def _check_override(config, word):
    """Raises ValueError where a word is not --config.KEY=VALUE for a key that the recipe has."""
    from ml_collections import ConfigDict

    from vlrep_jax.build import near

    path, equals, _ = word.partition("=")
    if not equals:
        raise ValueError(f"{word} has no value; write {word}=VALUE.")
    *parents, last = path.removeprefix("--config.").split(".")
    section, name = config, "config"
    for key in (*parents, last):
        if not isinstance(section, ConfigDict):
            raise ValueError(f"{path}: {name} is a value, not a section.")
        if key not in section:
            raise ValueError(f"{path}: {name} has no key {key!r}; {near(key, section.keys())}.")
        section, name = section[key], f"{name}.{key}"
