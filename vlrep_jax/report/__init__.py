"""A run's report: one self-contained HTML page, and its retrievals as one picture."""

from vlrep_jax.report.answers import write_answers
from vlrep_jax.report.page import write_report
from vlrep_jax.report.panels import RetrievalPanel, ZeroShotPanel
from vlrep_jax.report.sheet import contact_sheet

__all__ = ["RetrievalPanel", "ZeroShotPanel", "contact_sheet", "write_answers", "write_report"]
