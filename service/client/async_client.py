"""The client of the HTTP API for asyncio."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from ssl import SSLContext
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx
from numpy.typing import ArrayLike

from service.client import connection, errors, requests
from service.client.models import ModelDetails, ModelInfo, Models
from service.client.results import Classifications, Labellings
from service.client.retries import Backoff
from service.client.stream import AsyncStream
from service.client.stream_session import StreamSession

T = TypeVar("T")


class AsyncClient:
    """`Client` for asyncio."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        timeout: float = 30,
        *,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        verify: bool | SSLContext = True,
        follow_redirects: bool = False,
        retries: int = 4,
        retry_seconds: float = 30,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        """Takes the arguments of `Client`."""
        self._http = httpx.AsyncClient(
            base_url=connection.parse_address(url),
            timeout=timeout,
            headers=headers,
            cookies=dict(cookies or {}),
            verify=verify,
            follow_redirects=follow_redirects,
            transport=transport,
        )
        hooks = self._http.event_hooks
        strip = connection.strip_credentials_async
        hooks["request"].append(partial(strip, self._http.base_url))
        if not follow_redirects:
            hooks["response"].append(connection.raise_redirect_async)
        self._timeout, self._headers = timeout, headers
        self._retries, self._retry_seconds = retries, retry_seconds
        self._address = connection.without_credentials(self._http.base_url)

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
        body = requests.encode(sequences, model, top_k, states, return_state)
        return await self._request("POST", "/classify", Classifications, body)

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
        body = requests.encode(sequences, model, top_k, states, return_state)
        return await self._request("POST", "/label", Labellings, body)

    def stream(
        self,
        model: str,
        *,
        top_k: int | None = None,
        state: str | None = None,
        resume: bool = True,
    ) -> AsyncStream:
        """Open a stream; see `Client.stream`."""
        session = StreamSession(
            self._http.base_url,
            model,
            top_k,
            state,
            resume,
            self._timeout,
            self._headers,
        )
        return AsyncStream(session)

    async def models(self) -> list[ModelInfo]:
        """List the models in service."""
        return (await self._request("GET", "/models", Models)).models

    async def model(self, name: str) -> ModelDetails:
        """Describe a model; see `Client.model`."""
        path = f"/models/{quote(name, safe='')}"
        return await self._request("GET", path, ModelDetails)

    async def ready(self) -> list[str]:
        """List the reasons why the service is not ready; empty if it is ready."""
        with self._reporting():
            return connection.parse_reasons(await self._http.get("/readyz"))

    async def _request(
        self, method: str, path: str, kind: type[T], body: bytes | None = None
    ) -> T:
        headers = None if body is None else connection.JSON
        backoff = Backoff(self._retries, self._retry_seconds)
        while True:
            try:
                with self._reporting():
                    response = await self._http.request(
                        method, path, content=body, headers=headers
                    )
                    return connection.parse(response, kind)
            except errors.ClientError as error:
                seconds = backoff.seconds_after(error)
            await asyncio.sleep(seconds)

    def _reporting(self) -> AbstractContextManager[None]:
        return errors.reporting(self._address, self._timeout)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, *_: type[BaseException] | BaseException | TracebackType | None
    ) -> None:
        await self.close()
