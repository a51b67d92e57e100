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

from .answers import (
    Classifications,
    Labellings,
    RequestError,
    classifications,
    labellings,
)
from .client_stream import AsyncStream, Stream
from .conversation import StreamLost

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Client",
    "RequestError",
    "Stream",
    "StreamLost",
]


class Client:
    """Calls the service and waits. Safe to share between threads."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000", timeout: float = 30, **options: Any
    ):
        """`timeout` in seconds; `options`, such as `headers={"X-API-Key": key}`, are httpx'."""
        self._http = httpx.Client(base_url=url, timeout=timeout, **options)
        self._timeout, self._headers = timeout, options.get("headers")

    def classify(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
    ) -> Classifications:
        """One class for each sequence.

        Args:
            states: a token of an earlier answer for each sequence that goes on.
            return_state: have a token with each prediction, as its `state`.
        """
        body = _body(sequences, model, top_k, states, return_state)
        return classifications(self._post("/classify", body))

    def label(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
    ) -> Labellings:
        """One class for each step of each sequence."""
        body = _body(sequences, model, top_k, states, return_state)
        return labellings(self._post("/label", body))

    def stream(
        self,
        model: str,
        *,
        top_k: int | None = None,
        state: str | None = None,
        resume: bool = True,
    ) -> Stream:
        """A sequence whose frames are sent as they come.

        >>> with client.stream("letters-live") as stream:  # doctest: +SKIP
        ...     for frame in frames:
        ...         print(stream.send([frame]).labels)

        Args:
            state: token to go on from.
            resume: have a token with each answer, so that the stream goes on by
                itself when the connection breaks or the service is restarted.
                Of the client's options only `headers` are taken.
        """
        address = self._http.base_url.join("stream")
        return Stream(
            address, model, top_k, state, resume, self._timeout, self._headers
        )

    def models(self) -> list[dict[str, Any]]:
        """Every model in service."""
        models: list[dict[str, Any]] = _json(self._http.get("/models"))["models"]
        return models

    def ready(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        return _reasons(self._http.get("/readyz"))

    def _post(self, path: str, body: bytes) -> Any:
        return _json(self._http.post(path, content=body, headers=_HEADERS))

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
        """`timeout` in seconds; `options` as those of `Client`."""
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, **options)
        self._timeout, self._headers = timeout, options.get("headers")

    async def classify(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
    ) -> Classifications:
        """One class for each sequence."""
        body = _body(sequences, model, top_k, states, return_state)
        return classifications(await self._post("/classify", body))

    async def label(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
    ) -> Labellings:
        """One class for each step of each sequence."""
        body = _body(sequences, model, top_k, states, return_state)
        return labellings(await self._post("/label", body))

    def stream(
        self,
        model: str,
        *,
        top_k: int | None = None,
        state: str | None = None,
        resume: bool = True,
    ) -> AsyncStream:
        """A sequence whose frames are sent as they come; see `Client.stream`."""
        address = self._http.base_url.join("stream")
        return AsyncStream(
            address, model, top_k, state, resume, self._timeout, self._headers
        )

    async def models(self) -> list[dict[str, Any]]:
        """Every model in service."""
        response = await self._http.get("/models")
        models: list[dict[str, Any]] = _json(response)["models"]
        return models

    async def ready(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        return _reasons(await self._http.get("/readyz"))

    async def _post(self, path: str, body: bytes) -> Any:
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
    sequences: Sequence[ArrayLike],
    model: str | None,
    top_k: int | None,
    states: Sequence[str | None] | None,
    return_state: bool,
) -> bytes:
    # float32 is what the network computes in: half the digits of float64.
    body: dict[str, Any] = {
        "sequences": [np.ascontiguousarray(s, np.float32) for s in sequences]
    }
    if model is not None:
        body["model"] = model
    if top_k is not None:
        body["top_k"] = top_k
    if states is not None:
        body["states"] = list(states)
    if return_state:
        body["return_state"] = True
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _json(response: httpx.Response) -> Any:
    if response.is_error:
        try:
            problem = response.json()
        except ValueError:
            problem = None
        title = response.reason_phrase
        raise RequestError(response.status_code, problem, response.headers, title)
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
