"""A client of the service, blocking (`Client`) or not (`AsyncClient`).

>>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
...     client.classify([frames]).predictions[0].label
'7'

A sequence is anything like [T, F]: an array or nested lists. Both classes raise
`RequestError` for a refusal of the service, and httpx's own errors where there
was no answer at all.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
import orjson
from numpy.typing import ArrayLike

from .answers import Classifications, Labellings, classifications, labellings


class RequestError(Exception):
    """The service refused; its problem details as attributes."""

    def __init__(self, response: httpx.Response):
        try:
            problem = response.json()
        except ValueError:
            problem = {}
        if not isinstance(problem, dict):
            problem = {}
        self.status = response.status_code
        self.type: str = problem.get("type", "about:blank")
        self.title: str = problem.get("title", response.reason_phrase)
        self.detail: str = problem.get("detail", "")
        self.errors: list[dict[str, str]] = [
            e for e in problem.get("errors") or [] if isinstance(e, dict)
        ]
        self.request_id: str = response.headers.get("x-request-id", "")
        wait = response.headers.get("retry-after", "")
        self.retry_after = int(wait) if wait.isdecimal() else None
        fields = "".join(f"; {e['path']}: {e['message']}" for e in self.errors[:3])
        super().__init__(f"{self.status} {self.title}: {self.detail}{fields}")


class Client:
    """Calls the service and waits. Safe to share between threads."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000", timeout: float = 30, **options: Any
    ):
        """`timeout` in seconds; `options` go to `httpx.Client`."""
        self._http = httpx.Client(base_url=url, timeout=timeout, **options)

    def classify(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
    ) -> Classifications:
        """One class for each sequence."""
        return classifications(self._post("/classify", sequences, model, top_k))

    def label(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
    ) -> Labellings:
        """One class for each step of each sequence."""
        return labellings(self._post("/label", sequences, model, top_k))

    def models(self) -> list[dict[str, Any]]:
        """Every model in service."""
        models: list[dict[str, Any]] = _json(self._http.get("/models"))["models"]
        return models

    def ready(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        return _reasons(self._http.get("/readyz"))

    def _post(self, path: str, *content: Any) -> Any:
        return _json(self._http.post(path, content=_body(*content), headers=_HEADERS))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, *_: type[BaseException] | BaseException | TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The same for asyncio."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000", timeout: float = 30, **options: Any
    ):
        """`timeout` in seconds; `options` go to `httpx.AsyncClient`."""
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, **options)

    async def classify(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
    ) -> Classifications:
        """One class for each sequence."""
        return classifications(await self._post("/classify", sequences, model, top_k))

    async def label(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
    ) -> Labellings:
        """One class for each step of each sequence."""
        return labellings(await self._post("/label", sequences, model, top_k))

    async def models(self) -> list[dict[str, Any]]:
        """Every model in service."""
        response = await self._http.get("/models")
        models: list[dict[str, Any]] = _json(response)["models"]
        return models

    async def ready(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        return _reasons(await self._http.get("/readyz"))

    async def _post(self, path: str, *content: Any) -> Any:
        body = _body(*content)
        return _json(await self._http.post(path, content=body, headers=_HEADERS))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, *_: type[BaseException] | BaseException | TracebackType | None
    ) -> None:
        await self.close()


_HEADERS = {"Content-Type": "application/json"}


def _body(
    sequences: Sequence[ArrayLike], model: str | None, top_k: int | None
) -> bytes:
    # float32 is what the network computes in: half the digits of float64.
    body: dict[str, Any] = {
        "sequences": [np.ascontiguousarray(s, np.float32) for s in sequences]
    }
    if model is not None:
        body["model"] = model
    if top_k is not None:
        body["top_k"] = top_k
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _json(response: httpx.Response) -> Any:
    if response.is_error:
        raise RequestError(response)
    return orjson.loads(response.content)


def _reasons(response: httpx.Response) -> list[str]:
    if response.status_code == 503:
        try:
            reasons: list[str] = response.json()["reasons"]
        except (ValueError, TypeError, KeyError):
            reasons = ["not ready"]
        return reasons
    _json(response)
    return []
