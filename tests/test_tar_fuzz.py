"""The short form of `PYTHONPATH=tests python -m fuzz.tars`: mutated tars."""

from fuzz import tars


def test_mutated_tars_are_read_as_tarfile_reads_them_or_counted():
    outcomes, slowest_s, _ = tars.fuzz(range(120))
    assert outcomes.total() == 120 and outcomes["read"] > 30 and outcomes["refused"] > 10
    assert slowest_s < tars.LIMIT_S
