"""What no refusal may tell: anything of how the service is made."""

import re

from tests.robustness.disclosure.responses import seen
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import ROOT, SECRETS, serving

LEAKS = (
    *SECRETS, str(ROOT), "/usr/", "/app", "/home", "/etc", "tensorflow", "msgspec", "numpy", "orjson",
    "simdjson", "httptools", "onnx", "starlette", "fastapi", "uvicorn", "pydantic", "zlib", "object at 0x",
    ".py", "service.", "Exception", "__", "site-packages", "python",
)  # fmt: skip
NAMED = re.compile(r"\b[A-Z][A-Za-z]*Error\b")  # an exception's class
HEADERS = ("server", "x-powered-by", "via")  # that would name what serves


def leaked(text: str) -> list[str]:
    """What of it tells of us."""
    # "an error of the service. ..." would be a sentence's end.
    found = [one for one in LEAKS if one in text]
    return found + NAMED.findall(text)


@row("E2", "No refusal tells how the service is made", full=1_000, fast=25)
def telling(tally: Tally, amount: int) -> None:
    """In no refusal, of all that the attacks see, is a path of ours, a library's name,
    an exception's, or a traceback."""
    settings = {"header_seconds": 1, "body_seconds": 1}
    with serving(tally, **settings) as service:
        count = 0
        for one in seen(service, amount):
            if one.answer.status < 400:
                continue
            count += 1
            told = leaked(one.answer.text)
            tally.check(not told, f"{one.where}: {told} in {one.answer.text:.200}")
            names = [name for name in HEADERS if name in one.answer.headers]
            values = [one.answer.headers[name].lower() for name in names]
            tally.check(
                not any(
                    word in value for value in values for word in ("uvicorn", "python")
                ),
                f"{one.where}: headers {values}",
            )
            tally.check(one.answer.status < 500, f"{one.where}: {one.answer.status}")
        tally.figure("refusals", count)
