"""Both kinds of Triton's client (the asynchronous one is slow)."""

import pytest

from tests.clients.triton import connected


@pytest.fixture(
    scope="module", params=["plain", pytest.param("aio", marks=pytest.mark.slow)]
)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def client(kind, server):
    with connected(kind, server) as triton:
        yield triton
