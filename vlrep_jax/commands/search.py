"""The commands `vlrep index`, `search` and `serve`: flags in, one call out, as in `cli.py`."""

from collections.abc import Callable
from pathlib import Path


def add(commands, command: Callable) -> None:
    """Adds the commands to the command line.

    Args:
      commands: argparse's subparsers of `vlrep`.
      command: (subparsers, name, run, summary) -> parser, as `cli` makes its own.
    """
    for add_one in (_add_index, _add_search, _add_serve):
        add_one(commands, command)


def _add_index(commands, command):
    index = command(
        commands,
        "index",
        _index,
        "Embed pictures into an index that can be searched, or bring one up to date.",
    )
    index.usage = (
        "vlrep index --model=PATH --images=DIR|GLOB|tar:PATTERN [--images=...] --out=INDEX "
        "[--approximate_from=N]"
    )
    index.epilog = (
        "INDEX then holds exactly these pictures: run the same command again after pictures came, "
        "went or changed, and only those are embedded. A run that was stopped or killed continues."
    )
    index.add_argument(
        "--model", metavar="PATH", help="a model's files, or the DIR of a training run"
    )
    index.add_argument(
        "--images",
        metavar="WHAT",
        action="append",
        help="a folder, a glob in quotes, or tar:shards/{000..123}.tar; may be given several times",
    )
    index.add_argument("--out", metavar="INDEX", help="directory to make or to bring up to date")
    index.add_argument(
        "--approximate_from",
        type=int,
        metavar="N",
        help="from so many pictures on, search by a graph of near neighbours (200,000); 0 is any "
        "number. Needs usearch: pip install 'vlrep_jax[search]'",
    )


def _add_search(commands, command):
    search = command(
        commands, "search", _search, "Find the pictures of an index by a text, a picture, or both."
    )
    search.usage = (
        'vlrep search INDEX ["TEXT"] [--image=FILE] [--not="TEXT"] [-k N] '
        "[--json | --html=FILE] [--exact] [--model=PATH]"
    )
    search.add_argument("index", metavar="INDEX", help="directory that `vlrep index` made")
    search.add_argument("text", metavar="TEXT", nargs="?", help='such as "a red kangaroo"')
    search.add_argument("--image", metavar="FILE", help="find what looks like this picture")
    search.add_argument("--not", dest="without", metavar="TEXT", help="and is not like this text")
    search.add_argument("-k", type=int, default=20, metavar="N", help="how many (20)")
    how = search.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print one JSON object a picture")
    how.add_argument("--html", metavar="FILE", help="write a page that shows the pictures")
    search.add_argument(
        "--exact", action="store_true", help="look at every picture, however many there are"
    )
    search.add_argument(
        "--model", metavar="PATH", help="the index's model, where it is not where it was"
    )


def _add_serve(commands, command):
    serve = command(commands, "serve", _serve, "Search an index in the browser, and by HTTP.")
    serve.usage = (
        "vlrep serve INDEX [--host=ADDRESS] [--port=N] [--batch=N] [--exact] [--model=PATH]"
    )
    serve.add_argument("index", metavar="INDEX", help="directory that `vlrep index` made")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen at (127.0.0.1: this machine alone). Whoever reaches it sees all "
        "pictures of the index",
    )
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="(8000); 0 is any free")
    serve.add_argument(
        "--batch", type=int, default=16, metavar="N", help="requests encoded as one, at most (16)"
    )
    serve.add_argument(
        "--exact", action="store_true", help="look at every picture, however many there are"
    )
    serve.add_argument(
        "--model", metavar="PATH", help="the index's model, where it is not where it was"
    )


def _index(args, config_args):
    _no_config(args, config_args)
    if args.approximate_from is not None and args.approximate_from < 0:
        raise ValueError(f"--approximate_from={args.approximate_from} must be at least 0.")
    from vlrep_jax.search import running

    running.index(args.model, args.images, Path(args.out), approximate_from=args.approximate_from)
    return 0


def _search(args, config_args):
    _no_config(args, config_args)
    from vlrep_jax.search import running

    running.search(
        Path(args.index),
        args.text,
        image=args.image,
        without=args.without,
        k=args.k,
        model=args.model,
        exact=args.exact,
        as_json=args.json,
        html=None if args.html is None else Path(args.html),
    )
    return 0


def _serve(args, config_args):
    _no_config(args, config_args)
    from vlrep_jax.serve import running

    running.serve(
        Path(args.index),
        host=args.host,
        port=args.port,
        batch=args.batch,
        exact=args.exact,
        model=args.model,
    )
    return 0


def _no_config(args, config_args):
    if config_args:
        raise ValueError(f"vlrep {args.command} takes no {config_args[0]!r}.")
