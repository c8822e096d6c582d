"""What a finished run leaves: WORKDIR/model/, report.html and retrievals.png."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from vlrep_jax import goodput, metrics, workdirs
from vlrep_jax.build import plain
from vlrep_jax.report import RetrievalPanel, ZeroShotPanel, contact_sheet, write_report
from vlrep_jax.weights import save_run


def save_model(workdir: Path, config: ConfigDict) -> None:
    """Writes the parameters of the last step as plain safetensors."""
    save_run(workdir, config.steps, workdir / "model")


def write(
    workdir: Path,
    config: ConfigDict,
    panel: RetrievalPanel | None,
    class_sets: Mapping[str, ZeroShotPanel],
    spent: Mapping[str, float],
) -> Path:
    """Writes the report, and returns where.

    Args:
      panel, class_sets: of `report.panels_of`.
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
