"""Row E2: refusals disclose nothing about how the service is built."""

import re

from tests.robustness.disclosure.responses import all_responses
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import INTERNALS, ROOT, serving

WORDS = (
    *INTERNALS, str(ROOT), "/usr/", "/app", "/home", "/etc", "tensorflow", "msgspec", "numpy", "orjson",
    "simdjson", "httptools", "onnx", "starlette", "fastapi", "uvicorn", "pydantic", "zlib", "object at 0x",
    ".py", "service.", "Exception", "__", "site-packages", "python",
)  # fmt: skip
EXCEPTION = re.compile(r"\b[A-Z][A-Za-z]*Error\b")
HEADERS = ("server", "x-powered-by", "via")
SERVERS = ("uvicorn", "python")


@row("E2", "No refusal discloses how the service is built", full=1_000, fast=25)
def internals(tally: Tally, amount: int) -> None:
    """No refusal contains a path, a library's name, an exception's or a traceback."""
    settings = {"header_seconds": 1, "body_seconds": 1}
    with serving(tally, **settings) as service:
        count = 0
        for exchange in all_responses(service, amount):
            response, where = exchange.response, exchange.where
            if response.status < 400:
                continue
            count += 1
            words = [word for word in WORDS if word in response.text]
            words += EXCEPTION.findall(response.text)
            tally.check(not words, f"{where}: {words} in {response.text:.200}")
            headers = " ".join(response.headers.get(h, "") for h in HEADERS).lower()
            named = any(server in headers for server in SERVERS)
            tally.check(not named, f"{where}: headers {headers}")
            tally.check(response.status < 500, f"{where}: {response.status}")
        tally.figure("refusals", count)
