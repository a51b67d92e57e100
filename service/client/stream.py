"""Live streams: `Stream` blocks, `AsyncStream` is for asyncio.

A stream outlives its connection. If the last answer had a state token, any service with
the same key and bundle continues from it, and a message without an answer is sent again.
"""

import asyncio
import threading
import time
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any, Self

import websockets.asyncio.client
import websockets.sync.client
from numpy.typing import ArrayLike
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from service.client.errors import (
    CONNECTION_ERRORS,
    InvalidAnswer,
    RequestError,
    reporting,
)
from service.client.results import Classification, Labelling
from service.client.stream_session import (
    Answer,
    StreamSession,
    expect,
    failed_handshake,
)

# Seconds before each attempt to send a message: the first, and eight retries.
DELAYS = (0.0, *(0.1 * 2**attempt for attempt in range(8)))


def _is_fatal(error: BaseException) -> bool:
    """True if the next message on this connection could answer an earlier one."""
    return not isinstance(error, RequestError) or isinstance(error, InvalidAnswer)


class _Connection(websockets.sync.client.ClientConnection):
    def handshake(self, *arguments: Any, **options: Any) -> None:
        try:
            super().handshake(*arguments, **options)
        except InvalidHandshake as error:
            raise failed_handshake(error) from None


class _AsyncConnection(websockets.asyncio.client.ClientConnection):
    async def handshake(self, *arguments: Any, **options: Any) -> None:
        try:
            await super().handshake(*arguments, **options)
        except InvalidHandshake as error:
            raise failed_handshake(error) from None


class _BaseStream:
    def __init__(self, session: StreamSession):
        self._session = session

    @property
    def steps(self) -> int:
        """Number of steps taken so far."""
        return self._session.steps

    @property
    def state(self) -> str | None:
        """The state token of the last answer that had one."""
        return self._session.state


class Stream(_BaseStream):
    """A sequence whose frames are sent as they come."""

    def __init__(self, session: StreamSession):
        super().__init__(session)
        self._open: ExitStack | None = None
        self._connection: websockets.sync.client.ClientConnection
        self._lock = threading.Lock()

    def send(self, frames: ArrayLike, *, return_state: bool = False) -> Answer:
        """Send frames [t, F] to a model of either task: `classify` and `label` are for one.

        Raises:
            RequestError: the service refused the message, and the stream goes on; or
                it refused the stream. Redirects are not followed: they raise it too,
                with the location.
            InvalidAnswer: the answer is not the service's. Nothing was taken, and the
                next message is sent over another connection.
            ConnectionLost: no answer, or no connection.
            StreamLost: the connection broke, and there is no token to continue from.
        """
        answer = self._exchange(frames, return_state)
        assert answer is not None
        return answer

    def classify(
        self, frames: ArrayLike, *, return_state: bool = False
    ) -> Classification:
        """Send frames [t, F]; returns the class so far.

        Raises:
            ValueError: the model is to label.
            Exception: see `send`.
        """
        return expect(self.send(frames, return_state=return_state), Classification)

    def label(self, frames: ArrayLike, *, return_state: bool = False) -> Labelling:
        """Send frames [t, F]; returns the class of each frame.

        Raises:
            ValueError: the model is to classify.
            Exception: see `send`.
        """
        return expect(self.send(frames, return_state=return_state), Labelling)

    def end(self) -> str | None:
        """End the sequence; returns the token of its last step."""
        self._exchange(None, False)
        return self._session.state

    def close(self) -> None:
        """Close the connection."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _exchange(self, frames: ArrayLike | None, return_state: bool) -> Answer | None:
        with self._lock, reporting(self._session.address, self._session.timeout):
            try:
                return self._retry(frames, return_state)
            except BaseException as error:
                if _is_fatal(error):
                    self.close()
                raise

    def _retry(self, frames: ArrayLike | None, return_state: bool) -> Answer | None:
        session, failure = self._session, Exception()
        for delay in DELAYS:
            time.sleep(delay)
            try:
                if self._open is None:
                    self._connect()
                with suppress(ConnectionClosed):  # what it sent before can be read
                    self._connection.send(session.encode(frames, return_state))
                answer = session.decode(self._connection.recv(session.timeout))
            except (RequestError, *CONNECTION_ERRORS) as error:
                connected = self._open is not None
                if not isinstance(error, RequestError | TimeoutError):
                    self.close()
                failure = session.check_retry(error, connected)
            else:
                if answer is None:
                    self.close()
                if answer is not None or frames is None:
                    return answer
        raise failure

    def _connect(self) -> None:
        stack, session = ExitStack(), self._session
        session.connects()
        connection = websockets.sync.client.connect(
            session.url, create_connection=_Connection, **session.options
        )
        self._connection = stack.enter_context(connection)
        self._open, session.connected_before = stack, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(_BaseStream):
    """`Stream` for asyncio."""

    def __init__(self, session: StreamSession):
        super().__init__(session)
        self._open: AsyncExitStack | None = None
        self._connection: websockets.asyncio.client.ClientConnection
        self._lock = asyncio.Lock()

    async def send(self, frames: ArrayLike, *, return_state: bool = False) -> Answer:
        """Send frames [t, F]; see `Stream.send`."""
        answer = await self._exchange(frames, return_state)
        assert answer is not None
        return answer

    async def classify(
        self, frames: ArrayLike, *, return_state: bool = False
    ) -> Classification:
        """Send frames [t, F]; see `Stream.classify`."""
        answer = await self.send(frames, return_state=return_state)
        return expect(answer, Classification)

    async def label(
        self, frames: ArrayLike, *, return_state: bool = False
    ) -> Labelling:
        """Send frames [t, F]; see `Stream.label`."""
        answer = await self.send(frames, return_state=return_state)
        return expect(answer, Labelling)

    async def end(self) -> str | None:
        """End the sequence; returns the token of its last step."""
        await self._exchange(None, False)
        return self._session.state

    async def close(self) -> None:
        """Close the connection."""
        if self._open is not None:
            await self._open.aclose()
            self._open = None

    async def _exchange(
        self, frames: ArrayLike | None, return_state: bool
    ) -> Answer | None:
        async with self._lock:
            with reporting(self._session.address, self._session.timeout):
                try:
                    return await self._retry(frames, return_state)
                except BaseException as error:
                    # Without the closing handshake, for which a cancelled task must not
                    # wait.
                    if self._open is not None and _is_fatal(error):
                        self._connection.transport.abort()
                        self._open = None
                    raise

    async def _retry(
        self, frames: ArrayLike | None, return_state: bool
    ) -> Answer | None:
        session, failure = self._session, Exception()
        for delay in DELAYS:
            await asyncio.sleep(delay)
            try:
                if self._open is None:
                    await self._connect()
                with suppress(ConnectionClosed):
                    await self._connection.send(session.encode(frames, return_state))
                async with asyncio.timeout(session.timeout):
                    text = await self._connection.recv()
                answer = session.decode(text)
            except (RequestError, *CONNECTION_ERRORS) as error:
                connected = self._open is not None
                if not isinstance(error, RequestError | TimeoutError):
                    await self.close()
                failure = session.check_retry(error, connected)
            else:
                if answer is None:
                    await self.close()
                if answer is not None or frames is None:
                    return answer
        raise failure

    async def _connect(self) -> None:
        stack, session = AsyncExitStack(), self._session
        session.connects()
        connection = websockets.asyncio.client.connect(
            session.url, create_connection=_AsyncConnection, **session.options
        )
        self._connection = await stack.enter_async_context(connection)
        self._open, session.connected_before = stack, True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
