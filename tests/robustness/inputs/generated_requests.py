"""Requests that schemathesis makes of the OpenAPI document, right and wrong ones."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import ROOT, serving

SECONDS = 420
SEED = 1
FEWEST = 100  # requests; fewer mean that it didn't look
HERE = Path(__file__).parent
FILES = ("schemathesis.toml", "ndjson.py")  # which it reads where it runs
PHASES = ("examples", "coverage", "fuzzing", "stateful")


def found() -> str | None:
    """The command; `make robustness` sets up an environment with it."""
    beside = Path(sys.executable).parent, ROOT / ".venv-robustness/bin"
    paths = ":".join(map(str, beside))
    return shutil.which("schemathesis", path=paths) or shutil.which("schemathesis")


@row("A3", "Requests made of the OpenAPI document", full=200)
def generated(tally: Tally, amount: int) -> None:
    """Whatever schemathesis makes of the document, in every phase, its checks find
    nothing: no failure of ours, no undeclared status, header or shape, nothing accepted
    that the document forbids."""
    command = found()
    if not tally.check(command is not None, "no schemathesis: see `make robustness`"):
        return
    with tempfile.TemporaryDirectory() as folder, serving(tally) as service:
        report = Path(folder) / "report.json"
        for name in FILES:  # it leaves files of its own there, and would heed them
            shutil.copy(HERE / name, folder)
        ended = subprocess.run(
            [
                command, "run", f"{service.url}/openapi.json", "--mode", "all",
                "--max-examples", str(amount), "--seed", str(SEED), "--request-timeout", "10", "--no-color",
                "--continue-on-failure", "--no-shrink", "--report-json-path", report,
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            text=True,
        )  # fmt: skip
        if not tally.check(report.exists(), f"no report: {ended.stdout[-280:]}"):
            return
        told = json.loads(report.read_text())
        count = told["test_cases"]["generated"]
        tally.figure("requests", count)
        tally.check(count >= FEWEST, f"only {count} requests")
        tally.check(told["complete"] is True, f"stopped: {told['stop_reason']}")
        chosen, tested = (told["operations"][one] for one in ("selected", "tested"))
        tally.check(chosen == tested > 0, f"{tested} of {chosen} operations")
        for phase in PHASES:
            status = told["phases"][phase]["status"]
            tally.check(status == "success", f"{phase}: {status}")
        for fault in told["failures"]:
            tally.check(False, json.dumps(fault))
        for fault in told["errors"]:
            tally.check(False, json.dumps(fault))
        tally.check(ended.returncode == 0, f"exit code {ended.returncode}")
        tally.passed += count - told["test_cases"]["with_failures"] - 1
        tally.total += count - 1
