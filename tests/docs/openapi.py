"""Writes docs/openapi.json: `python -m tests.docs.openapi`."""

import json
import tempfile
from pathlib import Path
from typing import Any

from service.settings import Settings
from tests.support.servers import ROOT, running

FILE = ROOT / "docs" / "openapi.json"


def text_of(document: dict[str, Any]) -> str:
    """The document as text, without the examples of the models in service."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for body in operation.get("requestBody", {}).get("content", {}).values():
                body.pop("examples", None)
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Settings(port=0, bundles=Path(folder)), ready=False) as service,
    ):
        document = service.http.get("/openapi.json").json()
    FILE.write_text(text_of(document), encoding="utf-8")


if __name__ == "__main__":
    main()
