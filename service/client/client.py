"""A client of the service, blocking (`Client`) or not (`AsyncClient`).

>>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
...     client.classify([frames]).predictions[0].label
'7'

A sequence is anything like [T, F]: an array or nested lists. Both classes raise
`RequestError` for a refusal of the service, and for a redirect, which is not
followed; `InvalidAnswer`, which is one, for an answer that is not the service's; and
httpx's own errors where there was no answer at all.
"""

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
import orjson
from numpy.typing import ArrayLike

from service.client import results
from service.client.results import (
    Classifications,
    Labellings,
    RequestError,
)
from service.client.stream import AsyncStream, Stream


class Client:
    """Calls the service and waits. Safe to share between threads."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000", timeout: float = 30, **options: Any
    ):
        """`timeout` in seconds; `options`, such as `headers={"X-API-Key": key}`, are httpx'.

        With `follow_redirects=True` requests, not streams, go where they are sent;
        headers and cookies go to the origin of `url` only.
        """
        self._http = httpx.Client(base_url=url, timeout=timeout, **options)
        hooks = self._http.event_hooks
        hooks["request"].append(partial(_keep, self._http.base_url))
        if not self._http.follow_redirects:
            hooks["response"].append(_stay)
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
        return results.classifications(*self._post("/classify", body))

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
        return results.labellings(*self._post("/label", body))

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
        return results.models(*_content(self._http.get("/models")))

    def ready(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        return _reasons(self._http.get("/readyz"))

    def _post(self, path: str, body: bytes) -> tuple[bytes, int]:
        return _content(self._http.post(path, content=body, headers=_HEADERS))

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
        hooks = self._http.event_hooks
        hooks["request"].append(partial(_keep_async, self._http.base_url))
        if not self._http.follow_redirects:
            hooks["response"].append(_stay_async)
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
        return results.classifications(*await self._post("/classify", body))

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
        return results.labellings(*await self._post("/label", body))

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
        return results.models(*_content(await self._http.get("/models")))

    async def ready(self) -> list[str]:
        """Why the service is not ready; empty when it is."""
        return _reasons(await self._http.get("/readyz"))

    async def _post(self, path: str, body: bytes) -> tuple[bytes, int]:
        return _content(await self._http.post(path, content=body, headers=_HEADERS))

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


def _content(response: httpx.Response) -> tuple[bytes, int]:
    """An answer and its status.

    Raises:
        RequestError: it is a refusal, or a redirect.
    """
    status = response.status_code
    if not response.is_success:
        problem = results.problem(response.content)
        raise RequestError(status, problem, response.headers, response.reason_phrase)
    return response.content, status


def _reasons(response: httpx.Response) -> list[str]:
    if response.status_code == 503:
        return results.reasons(response.content, 503)
    results.ready(*_content(response))
    return []


# Headers that another origin may have: those that httpx makes.
_ANYBODY = {
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
    "user-agent",
}


def _keep(home: httpx.URL, request: httpx.Request) -> None:
    """Of what a redirect sends to another origin, httpx leaves out `Authorization`:
    here it is all that the caller gave, for any header may have a key."""
    to = request.url
    if (to.scheme, to.host, to.port) != (home.scheme, home.host, home.port):
        for name in set(request.headers) - _ANYBODY:
            del request.headers[name]


async def _keep_async(home: httpx.URL, request: httpx.Request) -> None:
    _keep(home, request)


def _stay(response: httpx.Response) -> None:
    """Raise of a redirect before httpx makes a request of it, which fails in other
    ways where that leads nowhere."""
    if response.has_redirect_location:
        response.read()
        _content(response)


async def _stay_async(response: httpx.Response) -> None:
    if response.has_redirect_location:
        await response.aread()
        _content(response)
