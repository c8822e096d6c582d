"""The commands `vlrep generate` and `vlrep edit`: flags in, one call out, as in `cli.py`."""

from collections.abc import Callable
from pathlib import Path

REQUIRED = {
    "generate": ("--model", "--text", "--out"),
    "edit": ("--model", "--image", "--from", "--to", "--out"),
}


def add(commands, command: Callable) -> None:
    """Adds both commands to the command line; arguments as in `data.add`."""
    generate = command(
        commands, "generate", _generate, "Draw what a text says, guided by trained models."
    )
    generate.usage = (
        'vlrep generate --model=PATH --text="..." --out=DIR [--generator=NAME|DIR] [--count=N] '
        '[--not="A;B"]\n                      [--size=PIXELS] [--steps=N] [--seed=N]'
    )
    _add_models(generate)
    generate.add_argument(
        "--text", action="append", metavar="TEXT", help="what to show; given again, another one"
    )
    generate.add_argument(
        "--generator",
        default="laplacian",
        metavar="NAME|DIR",
        help="'laplacian' or 'fourier', pictures drawn directly, or the DIR of a run of "
        "configs/generator_gan.py",
    )
    generate.add_argument(
        "--not", default="", metavar="A;B;...", help="texts that the pictures are not to show"
    )
    generate.add_argument("--count", type=int, default=4, metavar="N", help="pictures of each text")
    generate.add_argument(
        "--size",
        type=int,
        default=0,
        metavar="PIXELS",
        help="of a side; what the models see if not given",
    )
    _add_descent(generate, steps=200)

    edit = command(commands, "edit", _edit, "Change a picture as one text differs from another.")
    edit.usage = (
        'vlrep edit --model=PATH --image=FILE --from="..." --to="..." --out=DIR [--strength=X] '
        "[--mask=FILE]\n                  [--closeness=X] [--steps=N] [--seed=N]"
    )
    _add_models(edit)
    edit.add_argument("--image", metavar="FILE", help="the picture")
    edit.add_argument("--from", metavar="TEXT", help="what it shows, such as 'a dog'")
    edit.add_argument("--to", metavar="TEXT", help="what it is to show, such as 'a wolf'")
    edit.add_argument(
        "--strength", type=float, default=1.0, metavar="X", help="of the change; 0 changes nothing"
    )
    edit.add_argument(
        "--closeness", type=float, default=2.0, metavar="X", help="to the original, in pixels"
    )
    edit.add_argument(
        "--mask", default="", metavar="FILE", help="picture of the same size: white may change"
    )
    _add_descent(edit, steps=150)


def _add_models(parser):
    parser.add_argument(
        "--model",
        action="append",
        metavar="PATH",
        help="a model's files, or the DIR of a training run; given again, they guide together",
    )
    parser.add_argument("--out", metavar="DIR", help="directory to write; not there yet")


def _add_descent(parser, steps):
    parser.add_argument(
        "--steps", type=int, default=steps, metavar="N", help=f"of descent; {steps} if not given"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same gives the same files"
    )


def _generate(args, config_args):
    _no_config(args, config_args)
    from vlrep_jax.guidance.commands import run_generate

    run_generate(
        args.model,
        args.text,
        Path(args.out),
        generator=args.generator,
        others=[text for text in getattr(args, "not").split(";") if text],
        count=args.count,
        size=args.size,
        steps=args.steps,
        seed=args.seed,
    )
    return 0


def _edit(args, config_args):
    _no_config(args, config_args)
    from vlrep_jax.guidance.commands import run_edit

    run_edit(
        args.model,
        args.image,
        getattr(args, "from"),
        args.to,
        Path(args.out),
        strength=args.strength,
        closeness=args.closeness,
        mask=args.mask,
        steps=args.steps,
        seed=args.seed,
    )
    return 0


def _no_config(args, config_args):
    if config_args:
        raise ValueError(f"vlrep {args.command} takes no {config_args[0]!r}.")
