"""A run's report: one self-contained HTML page, and its retrievals as one picture."""

from vlrep_jax.report.answers import write_all_answers, write_answers
from vlrep_jax.report.page import write_report
from vlrep_jax.report.panels import RetrievalPanel, ZeroShotPanel, panels_of
from vlrep_jax.report.sheet import contact_sheet

__all__ = [
    "RetrievalPanel",
    "ZeroShotPanel",
    "contact_sheet",
    "panels_of",
    "write_all_answers",
    "write_answers",
    "write_report",
]
