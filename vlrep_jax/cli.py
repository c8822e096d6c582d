"""The command `vlrep`: flags in, one call out; a user's mistake is one line and exit code 2."""

import argparse
import logging
import shlex
import signal
import sys
import threading
import warnings
from pathlib import Path

from vlrep_jax.commands import compare, data, guidance, search, vqa
from vlrep_jax.config_files import load_config, override_config
from vlrep_jax.exits import (
    INTERRUPTED_CODE,
    STOPPED_CODE,
    TERMINATED_CODE,
    UNHEARD_CODE,
    USER_ERRORS,
    code_of,
)
from vlrep_jax.terminal import (
    escape_what_has_no_place,
    nobody_listens,
    warning_line,
    without_late_writes,
)

DAMAGED_CODE = 1  # `vlrep checkpoints` found one that is not whole

REQUIRED = {
    "checkpoints": (),
    "train": ("--config", "--workdir"),
    "eval": ("--workdir",),
    "embed": ("--workdir", "--images or --texts", "--out"),
    "plan": ("--config", "--topology"),
    "convert": ("--layout",),
    "export": ("--model", "--out"),
    "classify": ("--model", "--images", "--labels"),
    "index": ("--model", "--images", "--out"),
    **compare.REQUIRED,
    **guidance.REQUIRED,
    "vqa": ("--model", "--image", "--question"),
}
PRESET_HELP = "architecture, such as ViT-B-32-quickgelu, where the files do not say"
CONFIG_HELP = (
    "--config.KEY=VALUE changes one value of the recipe, for example --config.seed=1 or "
    "--config.schedule.peak=1e-3."
)


def main(argv: list[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    args, config_args = parse(argv if argv is not None else sys.argv[1:])
    # Orbax logs what goes wrong with a whole traceback; `checkpoint` says it in a line.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = without_late_writes(sys.unraisablehook)
    in_main = threading.current_thread() is threading.main_thread()
    handled = signal.signal(signal.SIGTERM, _terminated) if in_main else None
    formatted, warnings.formatwarning = warnings.formatwarning, warning_line
    escape_what_has_no_place()
    try:
        code = args.run(args, config_args)
        print(end="", flush=True)
        sys.exit(code)
    except USER_ERRORS as error:
        if isinstance(error, BrokenPipeError) and nobody_listens():
            sys.exit(UNHEARD_CODE)
        if args.traceback:
            raise
        print(f"vlrep: error: {error}", file=sys.stderr)
        sys.exit(code_of(error))
    except KeyboardInterrupt:
        if args.traceback:
            raise
        print("vlrep: interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED_CODE)
    finally:
        warnings.formatwarning = formatted
        if in_main:
            signal.signal(signal.SIGTERM, handled)


def _terminated(*_):
    """SIGTERM as SIGINT is taken: what is half written goes."""
    print("vlrep: terminated.", file=sys.stderr)
    sys.exit(TERMINATED_CODE)


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
    train.usage = (
        "vlrep train --config=FILE[:ARG] --workdir=DIR [--restore_step=N] [--config.KEY=VALUE ...]"
    )
    train.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        help="such as configs/quickstart.py",
    )
    train.add_argument("--workdir", metavar="DIR", help="where checkpoints, metrics and report go")
    train.add_argument(
        "--restore_step",
        type=int,
        metavar="N",
        help="go back to the checkpoint of this step, once; newer ones are set aside",
    )

    evaluate = _command(
        commands, "eval", _eval, "Evaluate a checkpoint again; writes DIR/eval-STEP.json."
    )
    evaluate.usage = "vlrep eval --workdir=DIR [--step=N] [--config.KEY=VALUE ...]"
    evaluate.add_argument("--workdir", metavar="DIR", help="of a training run")
    evaluate.add_argument(
        "--step", type=int, metavar="N", help="checkpoint; the newest if not given"
    )

    listed = _command(
        commands,
        "checkpoints",
        _checkpoints,
        "List a run's checkpoints, and whether each is whole.",
    )
    listed.usage = "vlrep checkpoints WORKDIR [--json] [--no-verify]"
    listed.add_argument("workdir", metavar="WORKDIR", help="of a training run")
    listed.add_argument("--json", action="store_true", help="print one JSON array")
    listed.add_argument(
        "--no-verify", action="store_true", help="do not read the arrays: quicker, and says less"
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
        "--layout", metavar="NAME", help="huggingface, openclip, openai, big_vision or vlrep"
    )
    convert.add_argument("--preset", metavar="NAME", help=PRESET_HELP)

    export = _command(
        commands, "export", _export, "Write the towers as programs that only JAX is needed to run."
    )
    export.usage = "vlrep export --model=PATH --out=DIR [--preset=NAME]"
    export.add_argument(
        "--model", metavar="PATH", help="a model's files, or the DIR of a training run"
    )
    export.add_argument("--out", metavar="DIR", help="directory to write; not there yet")
    export.add_argument("--preset", metavar="NAME", help=PRESET_HELP)

    classify = _command(
        commands, "classify", _classify, "Say which of some labels fits each picture."
    )
    classify.usage = (
        'vlrep classify --model=PATH --images=GLOB --labels="a cat,a dog" '
        "[--templates=...] [--json] [--preset=NAME]"
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
    classify.add_argument("--preset", metavar="NAME", help=PRESET_HELP)

    data.add(commands, _command)
    search.add(commands, _command)
    compare.add(commands, _command)
    guidance.add(commands, _command)
    vqa.add(commands, _command)

    args, rest = parser.parse_known_args(argv)
    config_args = [arg for arg in rest if arg.startswith("--config.")]
    unknown = [arg for arg in rest if arg not in config_args]
    if unknown:
        from vlrep_jax.build import near

        flags = [f for a in args.parser._actions for f in a.option_strings] + ["--config.KEY=VALUE"]
        word = unknown[0].split("=")[0]
        args.parser.error(f"unknown argument {unknown[0]!r}; {near(word, flags)}")
    # Only now, so that a misspelt flag is told as such and not as the absence of the right one.
    for flag in REQUIRED.get(args.command, ()):
        given = [getattr(args, name.removeprefix("--")) for name in flag.split(" or ")]
        if not any(given):
            is_absent = all(value is None or value == [] for value in given)
            args.parser.error(f"{flag} is {'required' if is_absent else 'empty'}")
    return args, config_args


def _command(commands, name, run, summary):
    """A subcommand whose help begins with its summary."""
    takes_config = name in ("train", "eval", "plan", "check", "inspect", "bench")
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=CONFIG_HELP if takes_config else None,
        allow_abbrev=False,
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    if name in ("train", "eval"):
        many = parser.add_argument_group("processes, where a cluster is not found by itself")
        many.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
        many.add_argument("--processes", type=int, metavar="N", help="how many; 1 looks for none")
        many.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
    parser.set_defaults(run=run, parser=parser, command=name)
    return parser


def _version():
    from vlrep_jax import __version__

    return f"vlrep_jax {__version__}"


def _train(args, config_args):
    from vlrep_jax.stopping import Stop

    # Before jax is loaded, which takes seconds.
    with Stop(leaves_early=True) as stop:
        config = load_config(args.config, config_args)
        with _joined(args, config) as cluster:
            from vlrep_jax import run

            finished = run.train(
                config, Path(args.workdir), args.restore_step, cluster=cluster, stop=stop
            )
    if not finished:
        # Given again, it would go back again.
        again = [word for word in sys.argv[1:] if not word.startswith("--restore_step=")]
        print(
            "Stopped; what was trained is saved. To continue:",
            shlex.join(["vlrep", *again]),
            file=sys.stderr,
        )
        return STOPPED_CODE
    return 0


def _eval(args, config_args):
    from vlrep_jax import run, workdirs
    from vlrep_jax.stopping import Stop

    workdir = Path(args.workdir)
    override = lambda config: override_config(config, config_args)  # noqa: E731
    config = override(workdirs.read_config(workdir))
    with Stop(leaves_early=True) as stop, _joined(args, config) as cluster:
        stop.join(cluster)
        run.evaluate(workdir, args.step, override=override)
    return 0


def _checkpoints(args, config_args):
    import jax

    from vlrep_jax import workdirs
    from vlrep_jax.checkpoint import listing

    _no_config(args, config_args)
    jax.config.update("jax_platforms", "cpu")  # the run may hold the accelerators
    workdir = Path(args.workdir)
    metric = workdirs.read_config(workdir).keep_best.metric
    whole = listing.show(workdir, metric, as_json=args.json, verify=not args.no_verify)
    return 0 if whole else DAMAGED_CODE


def _joined(args, config):
    """The other processes of this command, found or as its flags say."""
    from vlrep_jax import cluster

    limits = config.cluster
    return cluster.joined(
        args.coordinator,
        args.processes,
        args.process,
        join_s=limits.join_s,
        heartbeat_s=limits.heartbeat_s,
    )


def _embed(args, config_args):
    from vlrep_jax import embed

    if config_args:
        raise ValueError(f"vlrep embed takes no {config_args[0]!r}: the model is what was trained.")
    embed.embed(
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
    weights.convert(args.src, args.dst, args.layout, args.preset)
    print(f"Wrote {args.dst} ({args.layout}) from {args.src}.")
    return 0


def _classify(args, config_args):
    from vlrep_jax import classify
    from vlrep_jax.embed import files

    _no_config(args, config_args)
    classify.run(
        args.model,
        files(args.images),
        args.labels.split(","),
        templates=args.templates.split(";"),
        as_json=args.json,
        preset=args.preset,
    )
    return 0


def _export(args, config_args):
    from vlrep_jax import weights
    from vlrep_jax.export import export_towers

    _no_config(args, config_args)
    loaded = weights.load(args.model, args.preset)
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
