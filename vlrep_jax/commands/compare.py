"""The command `vlrep compare`: flags in, one call out, as in `cli.py`."""

from collections.abc import Callable
from pathlib import Path

REQUIRED = {"compare": ("--data", "--out")}


def add(commands, command: Callable) -> None:
    """Adds `compare` to the command line; arguments as of `commands.data.add`."""
    compare = command(
        commands,
        "compare",
        _compare,
        "Evaluate models side by side as papers do: zero-shot, linear probe, k-NN, few-shot, "
        "calibration, retrieval.",
    )
    compare.usage = (
        "vlrep compare MODEL [MODEL ...] --data=SET [--shifted=SET] [--classes=FILE] "
        "[--templates=FILE] [--suite=A,B,...] [--knn_k=N] [--shots=N,N,...] [--seeds=N] "
        "[--label=NAME] [--captions=NAME] --out=DIR"
    )
    compare.epilog = (
        "SET is a directory with a folder of pictures a class, or with train/, val/ and test/ of "
        "such folders; a CSV or TSV with the columns path, label and caption, split (a picture's "
        "rows are its captions); a JSON file of Karpathy's splits; the directory of a prepared "
        "TFDS data set, or tfds:NAME. Writes compare.json, compare.md and compare.png into DIR."
    )
    compare.add_argument(
        "models", nargs="+", metavar="MODEL", help="a model's files, or the DIR of a training run"
    )
    compare.add_argument("--data", metavar="SET", help="what to evaluate on")
    compare.add_argument(
        "--shifted",
        metavar="SET",
        help="with the same classes, such as drawings of another artist: says what the shift costs",
    )
    compare.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes: one a line, or JSON: a list, or label -> name or names "
        "(the labels themselves)",
    )
    compare.add_argument(
        "--templates",
        metavar="FILE",
        help="prompts with {} for the name, one a line or a JSON list; a class is their mean "
        "('a photo of a {}.')",
    )
    compare.add_argument(
        "--suite",
        metavar="A,B,...",
        help="of zero_shot, linear_probe, knn, few_shot, calibration and retrieval (all that the "
        "data allow)",
    )
    compare.add_argument(
        "--knn_k", type=int, default=20, metavar="N", help="neighbours that vote (20)"
    )
    compare.add_argument(
        "--shots",
        default="1,2,4,8,16",
        metavar="N,N,...",
        help="training pictures a class of few_shot (1,2,4,8,16)",
    )
    compare.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="draws of them, averaged (3)"
    )
    for name, usual in (("label", "label"), ("captions", "caption or captions")):
        compare.add_argument(
            f"--{name}", default="", metavar="NAME", help=f"column or feature ({usual})"
        )
    compare.add_argument("--out", metavar="DIR", help="directory for the table and the plot")


def _compare(args, config_args):
    if config_args:
        raise ValueError(f"vlrep compare takes no {config_args[0]!r}.")
    for name in ("knn_k", "seeds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}={getattr(args, name)} must be at least 1.")
    shots = args.shots.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in shots):
        raise ValueError(f"--shots={args.shots} must be whole numbers from 1 on, such as 1,2,4.")
    suites = [word.strip() for word in args.suite.split(",")] if args.suite else None
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file; name a directory.")

    from vlrep_jax import suite
    from vlrep_jax.data.class_files import read_templates
    from vlrep_jax.data.labelled import open_labelled

    columns = dict(label=args.label, captions=args.captions)
    templates = {"templates": read_templates(args.templates)} if args.templates else {}
    comparison = suite.compare(
        args.models,
        open_labelled(args.data, **columns),
        shifted=open_labelled(args.shifted, **columns) if args.shifted else None,
        classes=args.classes,
        suites=suites,
        options=suite.Options(
            knn_k=args.knn_k, shots=tuple(sorted({int(n) for n in shots})), seeds=args.seeds
        ),
        **templates,
    )
    print(suite.table(comparison))  # first, as there may be no space for the rest
    try:
        written = suite.write(comparison, out)
    except OSError as error:
        raise OSError(f"--out={out} cannot be written: {error.strerror or error}.") from error
    print(f"Wrote {', '.join(map(str, written))}")
    return 0
