"""Row C7: a bundle that never finishes loading is reported, and the rest is served."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from model.bundle import bundle
from tests.robustness.harness import fault_injection, reference
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, launch, serving
from tests.robustness.harness.traffic import Traffic

MODEL, ENDLESS = "digits", "letters-live"
LOAD_SECONDS = 8
REPORT_SECONDS = 10.0  # within which it is reported
BROKEN = 3  # exit code


@row("C7", "A bundle that never finishes loading", full=3)
def endless_loads(tally: Tally, amount: int) -> None:
    """It is reported as broken in time, at start, on reload and when asked for; no
    worker is lost, and other requests are answered."""
    for _ in range(amount):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "bundles"
            add_version(root, MODEL, "1")
            add_version(root, ENDLESS, "1")
            with serving(tally, skip_broken=True, **_settings(root)) as service:
                _check_reported(tally, service, ENDLESS, root / ENDLESS / "1")
                _check_workers(tally, service)
                service.baseline = service.open_resources()
                for action in (partial(_reload, root=root), _load):
                    requests = reference.requests(MODEL, 100, 60)
                    with Traffic(service.port, requests, 8, 100) as traffic:
                        action(tally, service)
                    traffic.check(tally)
            _strict_start(tally, Path(folder), root)


def _settings(root: Path) -> dict[str, Any]:
    hanging = f"{ENDLESS},{MODEL}@2"
    return {
        "module": fault_injection.MODULE,
        "injected": {fault_injection.HANGING_LOAD: hanging},
        "bundles": root,
        "workers": 2,
        "load_seconds": LOAD_SECONDS,
        "reload_seconds": 0.2,
        "admin": True,
    }


def add_version(root: Path, name: str, version: str) -> None:
    """Add a version of a shipped bundle atomically."""
    new = root / f".{name}"
    shutil.copytree(reference.bundle_folder(name) / "1", new)
    marker = new / bundle.MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": version}))
    (root / name).mkdir(exist_ok=True)
    os.rename(new, root / name / version)


def wait_for(condition: Callable[[], bool], seconds: float = REPORT_SECONDS) -> bool:
    """A condition holds within this time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def broken_reason(service: Service, key: str) -> str:
    """The reason why a bundle is reported as broken; empty: it is not."""
    return str(service.get("/models").json()["broken"].get(key, ""))


def _check_reported(tally: Tally, service: Service, key: str, folder: Path) -> None:
    """A bundle is reported as broken in time, with the reason."""
    wait_for(lambda: broken_reason(service, key) != "", LOAD_SECONDS + REPORT_SECONDS)
    reason = broken_reason(service, key)
    expected = f"{folder}: did not load within {LOAD_SECONDS} s"
    tally.check(reason == expected, f"{key} is reported with: {reason}")


def _check_workers(tally: Tally, service: Service) -> None:
    """No worker was lost, since none has loaded such a bundle."""
    deaths = service.metric("unrolled_worker_deaths_total")
    tally.check(deaths == 0, f"{deaths:.0f} workers were lost")


def _reload(tally: Tally, service: Service, root: Path) -> None:
    """A new version does not load; the next one does."""
    add_version(root, MODEL, "2")
    _check_reported(tally, service, f"{MODEL}@2", root / MODEL / "2")
    _check_workers(tally, service)
    add_version(root, MODEL, "3")
    path = f"/models/{MODEL}"
    served = wait_for(lambda: service.get(path).json()["version"] == "3")
    tally.check(served, "the next version is not served")


def _load(tally: Tally, service: Service) -> None:
    """A load through the API is refused in time."""
    start = time.monotonic()
    url = f"{service.url}/v2/repository/models/{ENDLESS}/load"
    status = httpx.post(url, timeout=60).status_code
    seconds = time.monotonic() - start
    tally.check(status == 503, f"a load got {status}")
    in_time = seconds <= LOAD_SECONDS + REPORT_SECONDS
    tally.check(in_time, f"a load was answered after {seconds:.1f} s")
    tally.figure("load refused after s", seconds)
    _check_workers(tally, service)


def _strict_start(tally: Tally, folder: Path, root: Path) -> None:
    """Without `skip_broken` the service ends; SIGTERM during the load ends it at once."""
    service = launch(folder, **_settings(root))
    try:
        code = service.process.wait(60)
        tally.check(code == BROKEN, f"exit code {code}")
    finally:
        service.stop()
    service = launch(folder, **_settings(root) | {"load_seconds": 60})
    try:
        tally.check(wait_for(service.is_alive), "it is not alive")
        time.sleep(1)  # the load has begun
        start = time.monotonic()
        code = service.stop()
        seconds = time.monotonic() - start
        tally.check(code == 0, f"SIGTERM during a load: exit code {code}")
        tally.check(seconds <= REPORT_SECONDS, f"it took {seconds:.1f} s")
        tally.figure("stopped in a load after s", seconds)
    finally:
        service.stop()
