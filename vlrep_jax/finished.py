"""What a finished run leaves: WORKDIR/model/, report.html and retrievals.png."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from vlrep_jax import goodput, metrics, workdirs
from vlrep_jax.build import plain
from vlrep_jax.evals import EvalResult
from vlrep_jax.evaluation import Evaluations
from vlrep_jax.report import RetrievalPanel, ZeroShotPanel, contact_sheet, write_report
from vlrep_jax.weights import save_run


def save_model(workdir: Path, config: ConfigDict) -> None:
    """Writes the parameters of the last step as plain safetensors."""
    save_run(workdir, config.steps, workdir / "model")


def panels(
    evaluations: Evaluations, results: Mapping[str, EvalResult]
) -> tuple[RetrievalPanel | None, dict[str, ZeroShotPanel]]:
    """What the report shows of the newest evaluation: a retrieval, and each class set."""
    panel, class_sets = None, {}
    for name, result in results.items():
        if "image_of_text" in result.details and panel is None:
            data = evaluations.data[name]
            # No mesh: only this process is here.
            panel = RetrievalPanel.of(name, result.details, data.pictures(), data.captions)
        for class_set, details in result.details.get("sets", {}).items():
            class_sets[class_set] = ZeroShotPanel(**details)
    return panel, class_sets


def write(
    workdir: Path,
    config: ConfigDict,
    panel: RetrievalPanel | None,
    class_sets: Mapping[str, ZeroShotPanel],
    spent: Mapping[str, float],
) -> Path:
    """Writes the report, and returns where.

    Args:
      panel, class_sets: of `panels`.
      spent: of `goodput.parts_of`.
    """
    if panel is not None:
        contact_sheet(workdir / "retrievals.png", panel)
    path = workdir / "report.html"
    write_report(
        path,
        title=f"{workdir.name}: {config.steps:,} steps",
        config=plain(config),
        versions=workdirs.versions(),
        history=metrics.read(workdir / metrics.FILE_NAME),
        retrieval=panel,
        zero_shot=class_sets,
        timing=spent,
        goodput=goodput.share(spent),
    )
    return path
