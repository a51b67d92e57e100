"""Row A3: valid and invalid requests that schemathesis generates from OpenAPI."""

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
MIN_REQUESTS = 100  # fewer mean that it found nothing to test
CONFIGURATION = Path(__file__).parent / "schemathesis"
PHASES = ("examples", "coverage", "fuzzing", "stateful")


def executable() -> str | None:
    """The command; `make robustness` sets up an environment with it."""
    folders = Path(sys.executable).parent, ROOT / ".venv-robustness/bin"
    path = ":".join(map(str, folders))
    return shutil.which("schemathesis", path=path) or shutil.which("schemathesis")


@row("A3", "Requests generated from the OpenAPI document", full=200)
def generated(tally: Tally, amount: int) -> None:
    """Schemathesis finds nothing in any phase: no 5xx, no undeclared status, header or
    schema, and no accepted request that the document forbids."""
    command = executable()
    if not tally.check(command is not None, "no schemathesis: see `make robustness`"):
        return
    with tempfile.TemporaryDirectory() as folder, serving(tally) as service:
        report = Path(folder) / "report.json"
        # It writes files of its own into the folder, and would read them again.
        shutil.copytree(CONFIGURATION, folder, dirs_exist_ok=True)
        process = subprocess.run(
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
        if not tally.check(report.exists(), f"no report: {process.stdout[-280:]}"):
            return
        results = json.loads(report.read_text())
        count = results["test_cases"]["generated"]
        tally.figure("requests", count)
        tally.check(count >= MIN_REQUESTS, f"only {count} requests")
        tally.check(results["complete"] is True, f"stopped: {results['stop_reason']}")
        selected, tested = (results["operations"][k] for k in ("selected", "tested"))
        tally.check(selected == tested > 0, f"{tested} of {selected} operations")
        for phase in PHASES:
            status = results["phases"][phase]["status"]
            tally.check(status == "success", f"{phase}: {status}")
        for failure in [*results["failures"], *results["errors"]]:
            tally.check(False, json.dumps(failure))
        tally.check(process.returncode == 0, f"exit code {process.returncode}")
        tally.passed += count - results["test_cases"]["with_failures"] - 1
        tally.total += count - 1
