"""A browser, the service with the shipped bundles, and a page of the playground."""

import pytest

from service.settings import Settings
from tests.browser.browser import BUNDLES, chromium, opened
from tests.support.servers import running


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def service():
    with running(Settings(port=0, bundles=BUNDLES)) as service:
        yield service


@pytest.fixture
def page(browser, service):
    with opened(browser, service.url) as page:
        yield page
