"""Run the robustness checklist against real service processes.

python -m tests.robustness            every row, in full
python -m tests.robustness A1 B3      these rows
python -m tests.robustness --fast     the smaller amounts of the tests
"""

import argparse
import sys
from pathlib import Path

from tests.robustness.harness.checklist import Row, Tally, markdown
from tests.robustness.rows import ROWS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", help="ids of rows (default: all)")
    parser.add_argument("--fast", action="store_true", help="smaller amounts")
    parser.add_argument("--report", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    for name in options.rows:
        if name not in ROWS:
            parser.error(f"no row {name}; there are {', '.join(sorted(ROWS))}")
    results: list[tuple[Row, Tally]] = []
    for row in (ROWS[name] for name in options.rows or sorted(ROWS)):
        amount = row.fast if options.fast else row.full
        if not amount:
            continue
        print(f"{row.id} {row.title} ...", flush=True)
        tally = row.run(amount)
        results.append((row, tally))
        outcome = f"{tally.passed}/{tally.total} in {tally.seconds:.0f} s"
        print(f"   {'passed' if tally.ok else 'FAILED'}: {outcome}; {tally.measured}")
        for failure in tally.failures:
            print(f"   - {failure}")
    table = markdown(results)
    print(table)
    if options.report:
        options.report.write_text(table)
    sys.exit(0 if all(tally.ok for _, tally in results) else 1)


if __name__ == "__main__":
    main()
