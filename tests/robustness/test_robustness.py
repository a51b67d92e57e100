"""The checklist of `tests.robustness`, in small amounts; `make robustness` tries all of it."""

import pytest

from tests.robustness.rows import ROWS

FAST = sorted(row.id for row in ROWS.values() if row.fast)


@pytest.mark.parametrize("name", FAST)
def test_row_holds(name):
    """Nothing of what a row tries is answered or survived otherwise than it must be."""
    row = ROWS[name]
    tally = row.run(row.fast)
    assert tally.good, (row.title, f"{tally.passed}/{tally.total}", tally.faults)
