"""Fixtures and options of all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest

from service.settings import PREFIX, Settings
from tests.support.bundles import (
    cached,
    write_quantized_bundle,
    write_shared_bundles,
    write_text_bundles,
)
from tests.support.servers import SECONDS, Running, running

LONGER_MARKERS = ("slow", "nightly", "browser", "ray")

# A busy machine can't promise how long an example takes: no deadline.
for profile, count in (("test", 25), ("test-all", 100)):
    hypothesis.settings.register_profile(
        profile,
        deadline=None,
        max_examples=count,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )


def pytest_addoption(parser):
    parser.addoption(
        "--behind",
        choices=["ray"],
        help="What the shared server is reached through, in place of nothing.",
    )


def pytest_configure(config):
    """Few examples in a quick run, many where `-m slow` selects the thorough one."""
    thorough = "slow" in config.getoption("markexpr")
    hypothesis.settings.load_profile("test-all" if thorough else "test")


def pytest_collection_modifyitems(config, items):
    """Leave out the tests that take longer, unless `-m` selects them."""
    if not config.getoption("markexpr"):
        longer = {
            item for item in items if any(map(item.get_closest_marker, LONGER_MARKERS))
        }
        _leave_out(config, items, longer)
    if config.getoption("--behind"):
        own = {item for item in items if item.get_closest_marker("direct")}
        _leave_out(config, items, own)


def _leave_out(config, items, others):
    config.hook.pytest_deselected(items=list(others))
    items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> Path:
    """A folder with `walks` (classify), `tags` (label) and `both` (label, in both
    directions), each of 3 features."""
    folder = cached("shared", write_shared_bundles)
    return shutil.copytree(folder, tmp_path_factory.mktemp("shared") / "bundles")


@pytest.fixture(scope="session")
def quantized(tmp_path_factory) -> Path:
    """A folder with `small` (label), which has int8 weights too."""
    folder = cached("quantized", write_quantized_bundle)
    return shutil.copytree(folder, tmp_path_factory.mktemp("quantized") / "bundles")


@pytest.fixture(scope="session")
def text_bundles(tmp_path_factory) -> Path:
    """A folder with `names` (label, words), `commands` (classify, characters), `visits`
    (classify, records) and `calls` (label, records)."""
    folder = cached("text", write_text_bundles)
    return shutil.copytree(folder, tmp_path_factory.mktemp("text") / "bundles")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside():
    """The machine's own settings of the service change no test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.upper().startswith((PREFIX, "OTEL_")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def running_server(bundles, tmp_path_factory, request) -> Iterator[Running]:
    """The service with the bundles and the engines of its choice, ready."""
    options = {"bundles": bundles, "default_label": "tags"}
    if request.config.getoption("--behind") == "ray":
        import tests.support.ray as ray_fixtures

        with (
            ray_fixtures.behind(tmp_path_factory.mktemp("ray"), **options) as url,
            httpx.Client(base_url=url, timeout=SECONDS, trust_env=False) as http,
        ):
            yield Running(url, None, None, http)
        return
    with running(Settings(port=0, **options)) as service:
        yield service


@pytest.fixture(scope="session")
def server(running_server) -> str:
    """Its address."""
    return running_server.url


@pytest.fixture
def http(running_server) -> httpx.Client:
    """A client of the shared server."""
    return running_server.http


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
