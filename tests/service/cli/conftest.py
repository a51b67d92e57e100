"""Fixtures that the tests of the commands share."""

import numpy as np
import pytest

from service.client import retries
from service.settings import Settings
from tests.support import tables
from tests.support.bundles import OnnxEngine
from tests.support.scheduler import FakeEngine, write_bundle
from tests.support.servers import CLASSES, running
from tests.support.streams import KEY


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    """Requests are sent again soon."""
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.002)


@pytest.fixture
def write(tmp_path):
    """A function that writes a file, and returns its path."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, np.ndarray):
            np.save(path, content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def mixed(bundles, tmp_path_factory):
    """A service with `both`, `walks` (3 features) and `made` (1 feature)."""
    folder = tmp_path_factory.mktemp("mixed")
    write_bundle(folder / "made" / "1")
    for name in ("both", "walks"):
        (folder / name).symlink_to(bundles / name)

    def load(bundle, settings):
        if bundle.metadata.name == "made":
            return FakeEngine()
        return OnnxEngine(bundle, settings)

    settings = Settings(port=0, bundles=folder, workers=1, state_key=KEY)
    with running(settings, load_engine=load) as server:
        yield server


@pytest.fixture(scope="module")
def named(bundles, tmp_path_factory):
    """A folder with `machines`, `moods` and `strokes`."""
    return tables.write_named_bundles(bundles, tmp_path_factory.mktemp("named"))


@pytest.fixture(scope="module")
def service(named):
    """The address of a service with these."""
    settings = Settings(port=0, bundles=named, workers=1)
    with running(settings, load_engine=OnnxEngine) as server:
        yield server.url


@pytest.fixture
def table(tmp_path):
    """A table in a file, and the path."""
    table = tables.make_table(lengths=(3, 1, 4, 2), labels=CLASSES["walks"][:2])
    path = tmp_path / "table.csv"
    table.to_csv(path, index=False)
    return table, path
