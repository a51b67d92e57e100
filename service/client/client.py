"""Clients of the HTTP API: `Client` blocks, `AsyncClient` is for asyncio.

>>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
...     client.classify([frames]).predictions[0].label
'7'

A sequence is an array [T, F], or nested lists of that shape. Both classes raise
`RequestError` if the service refuses a request, and for redirects, which are not
followed; `InvalidAnswer` (a `RequestError`) if the answer is not the service's; and
httpx's exceptions if there is no answer.
"""

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
import orjson
from numpy.typing import ArrayLike

from service.client import results
from service.client.results import (
    Classifications,
    InvalidAnswer,
    Labellings,
    Models,
    NotReady,
    Ready,
    RequestError,
)
from service.client.stream import AsyncStream, Stream

T = TypeVar("T")


class Client:
    """A blocking client. Safe to share between threads."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000", timeout: float = 30, **options: Any
    ):
        """
        Args:
            url: address of the service.
            timeout: seconds.
            options: of `httpx.Client`, such as `headers={"X-API-Key": key}`. With
                `follow_redirects=True` requests follow redirects, and streams don't;
                your headers and cookies are sent to the origin of `url` only.
        """
        self._http = httpx.Client(base_url=url, timeout=timeout, **options)
        hooks = self._http.event_hooks
        hooks["request"].append(partial(_strip_credentials, self._http.base_url))
        if not self._http.follow_redirects:
            hooks["response"].append(_raise_redirect)
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
        """Predict one class for each sequence.

        Args:
            sequences: each of shape [T, F], of any lengths.
            model: name, `NAME@VERSION` or `NAME@LABEL`; the service's default if None.
            top_k: return only the likeliest classes, as `top`.
            states: for each sequence the state token to continue from, or None.
            return_state: return a state token with each prediction, as `state`.
        """
        body = _body(sequences, model, top_k, states, return_state)
        return _parse(self._post("/classify", body), Classifications)

    def label(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
    ) -> Labellings:
        """Predict one class for each step of each sequence; see `classify`."""
        body = _body(sequences, model, top_k, states, return_state)
        return _parse(self._post("/label", body), Labellings)

    def stream(
        self,
        model: str,
        *,
        top_k: int | None = None,
        state: str | None = None,
        resume: bool = True,
    ) -> Stream:
        """Open a stream: a sequence whose frames are sent as they come.

        >>> with client.stream("letters-live") as stream:  # doctest: +SKIP
        ...     for frame in frames:
        ...         print(stream.send([frame]).labels)

        Args:
            state: state token to continue from.
            resume: request a state token with each answer, so that the stream resumes
                when the connection breaks or the service restarts.

        Of the client's options a stream uses only `headers` and the timeout.
        """
        address = self._http.base_url.join("stream")
        return Stream(
            address, model, top_k, state, resume, self._timeout, self._headers
        )

    def models(self) -> list[dict[str, Any]]:
        """List the models in service."""
        return _models(self._http.get("/models"))

    def ready(self) -> list[str]:
        """List the reasons why the service is not ready; empty if it is ready."""
        return _reasons(self._http.get("/readyz"))

    def _post(self, path: str, body: bytes) -> httpx.Response:
        return self._http.post(path, content=body, headers=_HEADERS)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, *_: type[BaseException] | BaseException | TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """`Client` for asyncio."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000", timeout: float = 30, **options: Any
    ):
        """Takes the arguments of `Client`; `options` are those of `httpx.AsyncClient`."""
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, **options)
        hooks = self._http.event_hooks
        hooks["request"].append(partial(_strip_credentials_async, self._http.base_url))
        if not self._http.follow_redirects:
            hooks["response"].append(_raise_redirect_async)
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
        """Predict one class for each sequence; see `Client.classify`."""
        body = _body(sequences, model, top_k, states, return_state)
        return _parse(await self._post("/classify", body), Classifications)

    async def label(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
    ) -> Labellings:
        """Predict one class for each step of each sequence."""
        body = _body(sequences, model, top_k, states, return_state)
        return _parse(await self._post("/label", body), Labellings)

    def stream(
        self,
        model: str,
        *,
        top_k: int | None = None,
        state: str | None = None,
        resume: bool = True,
    ) -> AsyncStream:
        """Open a stream; see `Client.stream`."""
        address = self._http.base_url.join("stream")
        return AsyncStream(
            address, model, top_k, state, resume, self._timeout, self._headers
        )

    async def models(self) -> list[dict[str, Any]]:
        """List the models in service."""
        return _models(await self._http.get("/models"))

    async def ready(self) -> list[str]:
        """List the reasons why the service is not ready; empty if it is ready."""
        return _reasons(await self._http.get("/readyz"))

    async def _post(self, path: str, body: bytes) -> httpx.Response:
        return await self._http.post(path, content=body, headers=_HEADERS)

    async def close(self) -> None:
        """Close the connections."""
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
    # The network computes in float32, which has half the digits of float64 in JSON.
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


def _raise_for_status(response: httpx.Response) -> None:
    """Raise RequestError for an error or a redirect."""
    if not response.is_success:
        problem = results.problem(response.content)
        status, title = response.status_code, response.reason_phrase
        raise RequestError(status, problem, response.headers, title)


def _parse(response: httpx.Response, kind: type[T]) -> T:
    """The body of a response as its documented type.

    Raises:
        RequestError: the response is an error or a redirect, or (InvalidAnswer) its body
            is not as documented.
    """
    _raise_for_status(response)
    body = results.parse_json(response.content, response.status_code)
    return results.convert(body, kind, response.status_code)


def _models(response: httpx.Response) -> list[dict[str, Any]]:
    _parse(response, Models)
    return list(orjson.loads(response.content)["models"])  # with all members


def _reasons(response: httpx.Response) -> list[str]:
    if response.status_code != 503:
        _parse(response, Ready)
        return []
    try:
        body = results.parse_json(response.content, 503)
        return results.convert(body, NotReady, 503)["reasons"]
    except InvalidAnswer:
        return ["not ready"]  # the answer of a proxy


# Headers that any origin may see: httpx sets them itself.
_PUBLIC_HEADERS = {
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
    "user-agent",
}


def _strip_credentials(base: httpx.URL, request: httpx.Request) -> None:
    """Remove the caller's headers from a request that was redirected to another origin.

    httpx removes `Authorization` only; but an API key may be in any header."""
    url = request.url
    if (url.scheme, url.host, url.port) != (base.scheme, base.host, base.port):
        for name in set(request.headers) - _PUBLIC_HEADERS:
            del request.headers[name]


async def _strip_credentials_async(base: httpx.URL, request: httpx.Request) -> None:
    _strip_credentials(base, request)


def _raise_redirect(response: httpx.Response) -> None:
    """Raise a RequestError for a redirect before httpx builds the next request, which
    raises other exceptions if the location is invalid."""
    if response.has_redirect_location:
        response.read()
        _raise_for_status(response)


async def _raise_redirect_async(response: httpx.Response) -> None:
    if response.has_redirect_location:
        await response.aread()
        _raise_for_status(response)
