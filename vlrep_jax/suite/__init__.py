"""Evaluation as papers report it: several models on one data set, side by side."""

from vlrep_jax.suite.comparing import Comparison, compare
from vlrep_jax.suite.suites import SUITES, Options
from vlrep_jax.suite.tables import table, write

__all__ = ["SUITES", "Comparison", "Options", "compare", "table", "write"]
