"""The commands `vlrep data ...`: flags in, one call out, as in `cli.py`."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from vlrep_jax.config_files import load_config


def add(commands, command: Callable) -> None:
    """Adds the group `data` to the command line.

    Args:
      commands: argparse's subparsers of `vlrep`.
      command: (subparsers, name, run, summary) -> parser, as `cli` makes its own.
    """
    group = commands.add_parser(
        "data",
        help="Look at data, measure them, write them as ArrayRecord.",
        description="Work on data sets.",
        allow_abbrev=False,
    ).add_subparsers(metavar="COMMAND", required=True)
    for add_one in (_add_check, _add_inspect, _add_bench, _add_prepare):
        add_one(group, command)


def _add_check(group, command):
    check = command(
        group, "check", _check, "Look at every sample: sizes, captions, duplicates, what is bad."
    )
    check.set_defaults(command="data check")
    check.usage = (
        "vlrep data check PATH --out=DIR [--option=KEY=VALUE ...] [--workers=N] [--limit=N]\n"
        "       vlrep data check --config=FILE[:ARG] --out=DIR [--config.KEY=VALUE ...]"
    )
    _add_path_or_config(check)
    check.add_argument("--out", metavar="DIR", help="directory to write; not there yet")
    check.add_argument(
        "--workers", type=int, metavar="N", help="processes; one a core if not given, 0 for none"
    )
    check.add_argument(
        "--limit", type=int, default=0, metavar="N", help="look at a random part of so many"
    )


def _add_inspect(group, command):
    inspect = command(
        group, "inspect", _inspect, "Show a training batch exactly as the model gets it."
    )
    inspect.set_defaults(command="data inspect")
    inspect.usage = (
        "vlrep data inspect (PATH | --config=FILE[:ARG]) --out=FILE.html [--step=N] [--count=N]\n"
        "       [--option=KEY=VALUE ...] [--config.KEY=VALUE ...]"
    )
    _add_path_or_config(inspect)
    inspect.add_argument("--out", metavar="FILE.html", help="the page to write")
    inspect.add_argument(
        "--step", type=int, default=0, metavar="N", help="the batch that is taken after N steps"
    )
    inspect.add_argument(
        "--count", type=int, default=48, metavar="N", help="rows of it, at most (48)"
    )


def _add_bench(group, command):
    bench = command(
        group, "bench", _bench, "Measure how fast data are made here, and what chips would need."
    )
    bench.set_defaults(command="data bench")
    bench.usage = (
        "vlrep data bench (PATH | --config=FILE[:ARG]) [--workers=N,N] [--seconds=S] [--json]\n"
        "       [--topology=NAME | --images_per_second=N [--hosts=N]] [--config.KEY=VALUE ...]"
    )
    _add_path_or_config(bench)
    bench.add_argument(
        "--workers", metavar="N,N", help="how many threads, and processes, to try; 1 to all cores"
    )
    bench.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="of each measurement (5)"
    )
    need = bench.add_mutually_exclusive_group()
    need.add_argument(
        "--topology",
        metavar="NAME",
        help="say what these chips need, by the estimate of `vlrep plan`; such as v5e:16x16",
    )
    need.add_argument(
        "--images_per_second", type=float, metavar="N", help="say what so many images need"
    )
    bench.add_argument(
        "--hosts", type=int, metavar="N", help="that share the work; a topology knows its own"
    )
    bench.add_argument("--json", action="store_true", help="print JSON; see docs/data_tools.md")


def _add_prepare(group, command):
    prepare = command(
        group, "prepare", _prepare, "Write a data set as ArrayRecord, which training reads fast."
    )
    prepare.set_defaults(command="data prepare")
    prepare.usage = (
        "vlrep data prepare NAME [--data_dir=DIR]\n"
        "       vlrep data prepare --source=PATH --out=DIR [--option=KEY=VALUE ...]"
    )
    prepare.add_argument(
        "dataset", metavar="NAME", nargs="?", help="of a TFDS data set, such as coco_captions/2014"
    )
    prepare.add_argument("--data_dir", metavar="DIR", default="", help="of TFDS data sets")
    add_source(prepare)
    prepare.add_argument("--out", metavar="DIR", help="directory to write; not there yet")


def _add_path_or_config(parser):
    # As a word of its own or as --source, which `prepare` needs for its names.
    parser.add_argument(
        "source", metavar="PATH", nargs="?", default=argparse.SUPPRESS, help="the same as --source"
    )
    add_source(parser)
    parser.add_argument("--config", metavar="FILE[:ARG]", help="a recipe, for its config.data")


def add_source(parser: argparse.ArgumentParser) -> None:
    """The flags that name a source."""
    parser.add_argument(
        "--source",
        metavar="PATH",
        help="a table, a pattern of tables or tar shards, a folder, or a TFDS directory",
    )
    parser.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help='of the source, such as captions=title or --option=\'captions=["a", "b"]\'',
    )


def source_section(args: argparse.Namespace) -> dict:
    """The section of the source that the flags of `add_source` name.

    Raises:
      ValueError: the path or an option is not as the source wants it.
      FileNotFoundError: there is nothing at the path.
    """
    from vlrep_jax.data.sources import source_of

    options = {}
    for word in args.option:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--option={word} has no value; write --option={word}=VALUE.")
        options[key] = _value(value)
    return source_of(args.source, **options)


def open_source(args: argparse.Namespace):
    """The source that the flags of `add_source` name; errors as `source_section`."""
    from vlrep_jax.build import build
    from vlrep_jax.data.sources import SOURCES

    return build(SOURCES, source_section(args), "source")


def _value(word):
    """A number, truth value, list or mapping as JSON writes it; any other word is a text."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def _check(args, config_args):
    config = _config(args, config_args)
    _needs_out(args, "the directory to write")
    from vlrep_jax.build import build
    from vlrep_jax.data.sources import SOURCES
    from vlrep_jax.data_tools.check import check

    if config is None:
        source, label = open_source(args), args.source
    else:
        source, label = build(SOURCES, config.data.source, "source"), args.config
    workers = _cores() if args.workers is None else args.workers
    check(source, label, Path(args.out), workers=workers, limit=args.limit)
    return 0


def _inspect(args, config_args):
    config = _config(args, config_args)
    _needs_out(args, "the page to write, such as --out=page.html")
    _on_cpu()
    from vlrep_jax.data_tools.inspection import inspect
    from vlrep_jax.data_tools.recipe import plain_recipe

    label = args.source if config is None else Path(args.config).name
    config = plain_recipe(source_section(args)) if config is None else config
    inspect(config, Path(args.out), label=label, count=args.count, step=args.step)
    return 0


def _bench(args, config_args):
    config = _config(args, config_args)
    if args.topology and config is None:
        raise ValueError("--topology needs --config=FILE: what chips need depends on the model.")
    if args.hosts is not None and (args.hosts < 1 or args.images_per_second is None):
        raise ValueError("--hosts is 1 or more, and goes with --images_per_second.")
    if args.images_per_second is not None and args.images_per_second <= 0:
        raise ValueError(f"--images_per_second={args.images_per_second:g} must be above 0.")
    counts = _counts(args.workers)
    _on_cpu()
    from vlrep_jax.data_tools import bench
    from vlrep_jax.data_tools.recipe import open_recipe, plain_recipe
    from vlrep_jax.metrics import Progress

    recipe = open_recipe(plain_recipe(source_section(args)) if config is None else config)
    source = recipe.open_source()
    asked = args.images_per_second, args.hosts or 1
    progress = Progress(bench.measurements(counts), unit="measurement")
    try:
        if args.topology:
            asked = _planned(config, args.topology, progress.say)
        found = bench.bench(
            recipe,
            source,
            counts=counts,
            seconds=args.seconds,
            say=progress.say,
            progress=progress.advance,
        )
    finally:
        progress.close()
    if asked[0]:
        found["needs"] = bench.needs(found, *asked)
    print(json.dumps(found, indent=2) if args.json else bench.table(found))
    return 0


def _planned(config, topology, say):
    """(images a second, hosts) of a recipe on chips that are not here."""
    from vlrep_jax import plan

    place = plan.find(topology)
    planned = plan.plan(config, place, say)
    if planned.samples_per_second is None:
        why = "its step does not fit" if not planned.fits else "it has no estimate of the time"
        raise ValueError(f"--topology={topology}: {why}; give --images_per_second=N instead.")
    return planned.samples_per_second, len({device.process_index for device in place.devices})


def _config(args, config_args):
    """The recipe that a command is given in place of a path; None for a path."""
    if bool(args.source) == bool(args.config):
        raise ValueError(f"vlrep {args.command} takes either PATH or --config=FILE.")
    if args.source:
        if config_args:
            raise ValueError(f"{config_args[0]} goes with --config=FILE, not with PATH.")
        return None
    if args.option:
        raise ValueError("--option is for PATH; of a recipe change --config.data.source.KEY.")
    return load_config(args.config, config_args)


def _needs_out(args, what):
    if not args.out:
        raise ValueError(f"vlrep {args.command} needs --out, {what}.")


def _counts(words):
    """'1,2,4' as numbers; 1, 2, 4 and so on to the number of cores where nothing is said."""
    if words is None:
        cores = _cores()
        return sorted({*(2**i for i in range(cores.bit_length())), cores})
    try:
        return sorted({int(word) for word in words.split(",")})
    except ValueError:
        raise ValueError(f"--workers={words} must be numbers with commas, as 1,2,4.") from None


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _on_cpu():
    import jax

    jax.config.update("jax_platforms", "cpu")  # a run may hold the accelerators


def _prepare(args, config_args):
    from vlrep_jax.data import preparing

    if config_args:
        raise ValueError(f"vlrep data prepare takes no {config_args[0]!r}.")
    if bool(args.dataset) == bool(args.source):
        raise ValueError("vlrep data prepare takes either NAME, of TFDS, or --source=PATH.")
    if args.dataset:
        if args.out or args.option:
            raise ValueError("--out and --option are for --source; TFDS goes by --data_dir.")
        print(f"Prepared {preparing.prepare_tfds(args.dataset, args.data_dir)}.")
        return 0
    if not args.out:
        raise ValueError("--source needs --out=DIR, the directory to write.")
    if args.data_dir:
        raise ValueError("--data_dir is for NAME; a source is written to --out.")
    source = open_source(args)
    path, left_out = preparing.write_array_record(source, args.out)
    counts = Counter(getattr(source, "skipped", {})) + left_out
    lines = [f"{reason} {n:,}" for reason, n in counts.items()]
    written = len(source) - left_out.total()
    print(f"Wrote {written:,} samples to {path}; left out: {', '.join(lines) or 'none'}.")
    return 0
