"""A bundle whose load never ends: it is told as broken, and the rest is served on."""

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

NETWORK, ENDLESS = "digits", "letters-live"
LOAD_SECONDS = 8
MORE_SECONDS = 10.0  # in which it is told
BROKEN = 3  # exit code


@row("C7", "a bundle whose load never ends", full=3)
def given_up(tally: Tally, amount: int) -> None:
    for _ in range(amount):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "bundles"
            add(root, NETWORK, "1")
            add(root, ENDLESS, "1")
            with serving(tally, skip_broken=True, **_sabotaged(root)) as service:
                _told(tally, service, ENDLESS, root / ENDLESS / "1")
                _whole(tally, service)
                service.before = service.counts()
                _during(tally, service, partial(_reload, tally, service, root))
                _during(tally, service, partial(_load, tally, service))
            _ended(tally, Path(folder), root)


def _sabotaged(root: Path) -> dict[str, Any]:
    return {
        "module": "tests.robustness.harness.fault_injection",
        "injected": {fault_injection.HANGING_LOAD: f"{ENDLESS},{NETWORK}@2"},
        "bundles": root,
        "workers": 2,
        "load_seconds": LOAD_SECONDS,
        "reload_seconds": 0.2,
        "admin": True,
    }


def add(root: Path, name: str, version: str) -> None:
    """A version of a shipped bundle, which appears whole."""
    new = root / f".{name}"
    shutil.copytree(reference.folder(name) / "1", new)
    marker = new / bundle.MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": version}))
    (root / name).mkdir(exist_ok=True)
    os.rename(new, root / name / version)


def until(true: Callable[[], bool], seconds: float = MORE_SECONDS) -> bool:
    """Whether it is so in that time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


def _told(tally: Tally, service: Service, key: str, folder: Path) -> None:
    """A bundle is told as broken in time, with the reason."""

    def reason() -> str | None:
        found: str | None = service.get("/models").json()["broken"].get(key)
        return found

    until(lambda: reason() is not None, LOAD_SECONDS + MORE_SECONDS)
    expected = f"{folder}: did not load within {LOAD_SECONDS} s"
    tally.check(reason() == expected, f"of {key} is told: {reason()}")


def _whole(tally: Tally, service: Service) -> None:
    """No worker was lost: none has seen such a bundle."""
    deaths = service.metric("unrolled_worker_deaths_total")
    tally.check(deaths == 0, f"{deaths:.0f} workers were lost")


def _during(tally: Tally, service: Service, act: Callable[[], None]) -> None:
    """While it is done all requests are answered."""
    asked = reference.some(NETWORK, 100, 60)
    with Traffic(service.port, asked, 8, 100) as traffic:
        act()
    for one in traffic.told:
        tally.check(one.right, f"a request got {one.status}")


def _reload(tally: Tally, service: Service, root: Path) -> None:
    """A new version does not load; the one after it does."""
    add(root, NETWORK, "2")
    _told(tally, service, f"{NETWORK}@2", root / NETWORK / "2")
    _whole(tally, service)
    add(root, NETWORK, "3")
    path = f"/models/{NETWORK}"
    served = until(lambda: service.get(path).json()["version"] == "3")
    tally.check(served, "the version after it is not served")


def _load(tally: Tally, service: Service) -> None:
    """Nor does one that is asked for."""
    begun = time.monotonic()
    path = f"{service.url}/v2/repository/models/{ENDLESS}/load"
    status = httpx.post(path, timeout=60).status_code
    seconds = time.monotonic() - begun
    tally.check(status == 503, f"a load was answered with {status}")
    fine = seconds <= LOAD_SECONDS + MORE_SECONDS
    tally.check(fine, f"a load was answered after {seconds:.1f} s")
    tally.figure("load refused after s", seconds)
    _whole(tally, service)


def _ended(tally: Tally, folder: Path, root: Path) -> None:
    """Where it must not be broken the service ends; and at once when it is told to in
    the midst of such a load."""
    service = launch(folder, **_sabotaged(root))
    try:
        code = service.process.wait(60)
        tally.check(code == BROKEN, f"exit code {code}")
    finally:
        service.stop()
    service = launch(folder, **_sabotaged(root) | {"load_seconds": 60})
    try:
        tally.check(until(service.lives), "it does not live")
        time.sleep(1)  # it loads, or will
        begun = time.monotonic()
        code = service.stop()
        seconds = time.monotonic() - begun
        tally.check(code == 0, f"told to stop: exit code {code}")
        tally.check(seconds <= MORE_SECONDS, f"it took {seconds:.1f} s")
        tally.figure("stopped in a load after s", seconds)
    finally:
        service.stop()
