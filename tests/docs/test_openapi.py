"""docs/openapi.json is the contract: a change of the API shows as a change of the file."""

import httpx

from tests.docs.openapi import FILE, text_of


def test_openapi(server):
    """The service's document is the file's."""
    document = httpx.get(f"{server}/openapi.json", trust_env=False).json()
    message = "run python -m tests.docs.openapi, and look at the difference"
    assert text_of(document) == FILE.read_text(encoding="utf-8"), message
