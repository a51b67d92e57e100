"""The client of the HTTP API for asyncio."""

from collections.abc import Mapping, Sequence
from functools import partial
from ssl import SSLContext
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx
from numpy.typing import ArrayLike

from service.client import connection, requests
from service.client.models import ModelDetails, ModelInfo, Models
from service.client.results import Classifications, Labellings
from service.client.stream import AsyncStream


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
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        """Takes the arguments of `Client`."""
        self._http = httpx.AsyncClient(
            base_url=url,
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
        return connection.parse(await self._post("/classify", body), Classifications)

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
        return connection.parse(await self._post("/label", body), Labellings)

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

    async def models(self) -> list[ModelInfo]:
        """List the models in service."""
        return connection.parse(await self._http.get("/models"), Models).models

    async def model(self, name: str) -> ModelDetails:
        """Describe a model; see `Client.model`."""
        response = await self._http.get(f"/models/{quote(name, safe='')}")
        return connection.parse(response, ModelDetails)

    async def ready(self) -> list[str]:
        """List the reasons why the service is not ready; empty if it is ready."""
        return connection.parse_reasons(await self._http.get("/readyz"))

    async def _post(self, path: str, body: bytes) -> httpx.Response:
        return await self._http.post(path, content=body, headers=connection.JSON)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, *_: type[BaseException] | BaseException | TracebackType | None
    ) -> None:
        await self.close()
