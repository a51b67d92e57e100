"""Put the service through the checklist.

python -m tests.robustness            every row, in full
python -m tests.robustness A1 B3      these rows
python -m tests.robustness --fast     what the default tests try
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
    parser.add_argument("rows", nargs="*", help="ids; none: all")
    parser.add_argument("--fast", action="store_true", help="smaller amounts")
    parser.add_argument("--report", type=Path, help="write the table here too")
    options = parser.parse_args()
    for name in options.rows:
        if name not in ROWS:
            parser.error(f"no row {name}; there are {', '.join(sorted(ROWS))}")
    chosen = [ROWS[name] for name in options.rows or sorted(ROWS)]
    done: list[tuple[Row, Tally]] = []
    for row in chosen:
        amount = row.fast if options.fast else row.full
        if not amount:
            continue
        print(f"{row.id} {row.title} ...", flush=True)
        tally = row.run(amount)
        done.append((row, tally))
        figures = ", ".join(f"{k} {v}" for k, v in tally.figures.items())
        word = "held" if tally.good else "DID NOT HOLD"
        print(
            f"   {word}: {tally.passed}/{tally.total} in {tally.seconds:.0f} s; {figures}"
        )
        for fault in tally.faults:
            print(f"   - {fault}")
    table = markdown(done)
    print(table)
    if options.report:
        options.report.write_text(table)
    sys.exit(0 if all(tally.good for _, tally in done) else 1)


if __name__ == "__main__":
    main()
