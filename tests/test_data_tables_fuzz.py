"""The short form of `cd tests && python -m fuzz.tables 4000`."""

from fuzz import tables


def test_damaged_tables_are_read_or_refused_and_nothing_else():
    counts = tables.run(range(300))
    assert min(counts.values()) > 50, counts  # both ends are met
