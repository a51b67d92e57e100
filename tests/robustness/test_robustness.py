"""The robustness checklist in small amounts; `make robustness` runs all of it."""

import pytest

from tests.robustness.rows import ROWS

UNMARKED = {"A1", "A7"}  # a few seconds each
FAST = [
    pytest.param(row, id=id, marks=() if id in UNMARKED else pytest.mark.slow)
    for id, row in sorted(ROWS.items())
    if row.fast
]


@pytest.mark.parametrize("row", FAST)
def test_row_passes(row):
    """Every check of a row passes."""
    tally = row.run(row.fast)
    assert tally.ok, (row.title, f"{tally.passed}/{tally.total}", tally.failures)
