"""The command `vlrep vqa`: flags in, one call out, as in `cli.py`."""

from collections.abc import Callable


def add(commands, command: Callable) -> None:
    """Adds `vqa` to the command line; arguments as of `commands.data.add`."""
    vqa = command(commands, "vqa", _vqa, "Answer a question about a picture.")
    vqa.usage = (
        'vlrep vqa --model=PATH --image=FILE --question="what is this?" [--answers=A,B,...] '
        "[--templates=...] [--json]"
    )
    vqa.add_argument(
        "--model", metavar="PATH", help="a model's files, or the DIR of a training run"
    )
    vqa.add_argument("--image", metavar="FILE", help="a picture")
    vqa.add_argument("--question", metavar="TEXT", help="about the picture")
    vqa.add_argument(
        "--answers",
        metavar="A,B,...",
        default="",
        help="to choose among; a model that was trained to answer has its own",
    )
    vqa.add_argument(
        "--templates",
        metavar="T;T;...",
        default="",
        help="prompts of a model that was not, with {} for an answer and {question} where wanted, "
        "such as 'a photo of {}.'; an answer is their mean",
    )
    vqa.add_argument("--json", action="store_true", help="print one JSON object")


def _vqa(args, config_args):
    from vlrep_jax import vqa

    if config_args:
        raise ValueError(f"vlrep vqa takes no {config_args[0]!r}.")
    vqa.run(
        args.model,
        args.image,
        args.question,
        args.answers.split(",") if args.answers else (),
        templates=args.templates.split(";") if args.templates else vqa.TEMPLATES,
        as_json=args.json,
    )
    return 0
