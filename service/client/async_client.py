"""The client of the HTTP API for asyncio."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from ssl import SSLContext
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx

from service.client import connection, errors, requests, tables
from service.client.calls import (
    ATTEMPTS,
    PARALLEL,
    Answer,
    Call,
    Progress,
    VersionChanged,
)
from service.client.models import Limits, ModelDetails, ModelInfo, Models
from service.client.requests import Arguments, Part
from service.client.results import Classifications, Labellings
from service.client.retries import Backoff
from service.client.stream import AsyncStream
from service.client.stream_session import StreamSession
from service.client.tables import Data, Names

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
        self._timeout, self._headers, self._verify = timeout, headers, verify
        self._retries, self._retry_seconds = retries, retry_seconds
        self._address = connection.without_credentials(self._http.base_url)

    async def classify(
        self,
        sequences: Data,
        *,
        by: str | None = None,
        step: str | None = None,
        label: str | None = None,
        ignore: Sequence[str] = (),
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
        progress: Progress | None = None,
    ) -> Classifications:
        """Predict one class for each sequence; see `Client.classify`."""
        names = Names(by, step, label, tuple(ignore))
        data = tables.collect(sequences)
        arguments = Arguments(data, names, model, top_k, states, return_state, progress)
        return await self._predict("classify", Classifications, arguments)

    async def label(
        self,
        sequences: Data,
        *,
        by: str | None = None,
        step: str | None = None,
        label: str | None = None,
        ignore: Sequence[str] = (),
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
        progress: Progress | None = None,
    ) -> Labellings:
        """Predict one class for each step of each sequence."""
        names = Names(by, step, label, tuple(ignore))
        data = tables.collect(sequences)
        arguments = Arguments(data, names, model, top_k, states, return_state, progress)
        return await self._predict("label", Labellings, arguments)

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
            self._verify,
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

    async def _predict(
        self, task: str, kind: type[Answer], arguments: Arguments
    ) -> Answer:
        for _ in range(ATTEMPTS - 1):
            with suppress(VersionChanged):
                return await self._attempt(task, kind, arguments)
        return await self._attempt(task, kind, arguments)

    async def _attempt(
        self, task: str, kind: type[Answer], arguments: Arguments
    ) -> Answer:
        details = None
        if tables.is_dataframe(arguments.data):
            name = arguments.model or connection.default_model(
                task, await self.models()
            )
            details = await self.model(name)
        request = requests.prepare(arguments, details)
        progress = arguments.progress
        call = Call(task, kind, request, None, progress, self._address)
        if not call.is_large:
            try:
                answer = await self._request(
                    "POST", call.path, kind, call.encode(call.first)
                )
                call.add(call.first, [answer])
                return call.result()
            except errors.RequestError as error:
                call.split(
                    call.first, error
                )  # raises an error that parts would get too
        limits = await self._limits()
        call = Call(task, kind, request, limits, progress, self._address)
        call.add(call.first, await self._send(call, call.first))
        if call.is_large:
            await self._send_parts(call)
        return call.result()

    async def _limits(self) -> Limits | None:
        """The limits of a request; None if the service doesn't say."""
        try:
            return (await self._request("GET", "/models", Models)).limits
        except errors.RequestError:
            return None

    async def _send(self, call: Call[Answer], part: Part) -> list[Answer]:
        """The answers to a part: one, or several if the part is too large."""
        try:
            body = call.encode(part)
            return [await self._request("POST", call.path, call.kind, body)]
        except errors.RequestError as error:
            parts = call.split(part, error)
        answers = [await self._send(call, half) for half in parts]
        return [answer for several in answers for answer in several]

    async def _send_parts(self, call: Call[Answer]) -> None:
        tasks: deque[tuple[Part, asyncio.Task[list[Answer]]]] = deque()
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def send(part: Part) -> list[Answer]:
            try:
                return await self._send(call, part)
            except errors.ClientError as error:
                if not failed.done():
                    failed.set_exception(error)
                raise

        async def add_first() -> None:
            part, task = tasks[0]
            await asyncio.wait((task, failed), return_when=asyncio.FIRST_COMPLETED)
            if failed.done():  # a later part may have failed first
                failed.result()
            tasks.popleft()
            call.add(part, await task)

        try:
            for part in call.parts:
                tasks.append((part, asyncio.create_task(send(part))))
                if len(tasks) == PARALLEL:
                    await add_first()
            while tasks:
                await add_first()
        finally:
            failed.cancel()
            for _, task in tasks:
                task.cancel()
            await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)

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
