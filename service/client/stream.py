"""A stream from the caller's side, blocking (`Stream`) or not (`AsyncStream`).

Both go on by themselves where the service stops or has closed an idle stream, and
where the connection breaks.
"""

import asyncio
import threading
import time
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any, Self

import websockets.asyncio.client
import websockets.sync.client
from numpy.typing import ArrayLike
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    WebSocketException,
)

from service.client.results import InvalidAnswer, RequestError
from service.client.session import Answer, StreamSession, closed, refused, waits

LOST = (WebSocketException, EOFError, OSError)


# What comes of a handshake is raised as ours: of its own errors websockets would
# follow a redirect, and take the caller's headers, its key among them, along.


class _Connection(websockets.sync.client.ClientConnection):
    def handshake(self, *arguments: Any, **options: Any) -> None:
        try:
            super().handshake(*arguments, **options)
        except InvalidHandshake as error:
            raise refused(error) from None


class _AsyncConnection(websockets.asyncio.client.ClientConnection):
    async def handshake(self, *arguments: Any, **options: Any) -> None:
        try:
            await super().handshake(*arguments, **options)
        except InvalidHandshake as error:
            raise refused(error) from None


def _breaks(error: BaseException) -> bool:
    """Whether what else comes over the connection may be the answer to something else."""
    return not isinstance(error, RequestError) or isinstance(error, InvalidAnswer)


class _Caller:
    """What both have."""

    def __init__(self, *arguments: Any):
        self._talk = StreamSession(*arguments)

    @property
    def steps(self) -> int:
        """Taken so far."""
        return self._talk.steps

    @property
    def state(self) -> str | None:
        """The last token: of the last answer that brought one."""
        return self._talk.state


class Stream(_Caller):
    """A sequence whose frames are sent as they come."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._open: ExitStack | None = None
        self._connection: websockets.sync.client.ClientConnection
        self._one = threading.Lock()  # message at a time

    def send(self, frames: ArrayLike, *, return_state: bool = False) -> Answer:
        """The class so far, or those of these frames [t, F].

        Raises:
            RequestError: the service can't take it, and the stream goes on; or the
                stream can't be opened. A redirect is not followed: it is such an
                error, too, and says where it leads.
            InvalidAnswer: what answered is not the service; nothing was taken, and
                the next message goes over another connection.
            StreamLost: the connection broke, and there is no token to go on from.
            TimeoutError, OSError: no answer, or no connection.
        """
        answer = self._ask(frames, return_state)
        assert answer is not None
        return answer

    def end(self) -> str | None:
        """Say that it was all; the token of where it ended."""
        self._ask(None, False)
        return self._talk.state

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _ask(self, frames: ArrayLike | None, return_state: bool) -> Answer | None:
        with self._one:
            try:
                return self._ask_on(frames, return_state)
            except BaseException as error:
                if _breaks(error):
                    self.close()  # its answer must not pass for that of the next
                raise

    def _ask_on(self, frames: ArrayLike | None, return_state: bool) -> Answer | None:
        failure: Exception = OSError("no connection")
        for wait in waits():
            time.sleep(wait)
            try:
                if self._open is None:
                    self._connect()
                with suppress(ConnectionClosed):  # what it said before is there still
                    self._connection.send(self._talk.say(frames, return_state))
                text = self._connection.recv(self._talk.timeout)
                answer = self._talk.hear(text)
            except RequestError as error:
                if self._open is not None or error.status != 503:
                    raise
                failure = error  # no place, or not ready yet
            except TimeoutError:
                raise
            except LOST as error:
                self.close()
                failure = closed(error)
                if not self._talk.begun or isinstance(failure, RequestError):
                    raise failure from None
            else:
                if answer is None:
                    self.close()
                if answer is not None or frames is None:
                    return answer
        raise failure

    def _connect(self) -> None:
        stack, talk = ExitStack(), self._talk
        talk.begin()
        connected = websockets.sync.client.connect(
            talk.address, create_connection=_Connection, **talk.options
        )
        self._connection = stack.enter_context(connected)
        self._open, talk.begun = stack, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(_Caller):
    """The same for asyncio."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._open: AsyncExitStack | None = None
        self._connection: websockets.asyncio.client.ClientConnection
        self._one = asyncio.Lock()  # message at a time

    async def send(self, frames: ArrayLike, *, return_state: bool = False) -> Answer:
        """As `Stream.send`."""
        answer = await self._ask(frames, return_state)
        assert answer is not None
        return answer

    async def end(self) -> str | None:
        """As `Stream.end`."""
        await self._ask(None, False)
        return self._talk.state

    async def close(self) -> None:
        if self._open is not None:
            await self._open.aclose()
            self._open = None

    async def _ask(self, frames: ArrayLike | None, return_state: bool) -> Answer | None:
        async with self._one:
            try:
                return await self._ask_on(frames, return_state)
            except BaseException as error:
                # Without a goodbye: who is cancelled must not wait for another.
                if self._open is not None and _breaks(error):
                    self._connection.transport.abort()
                    self._open = None
                raise

    async def _ask_on(
        self, frames: ArrayLike | None, return_state: bool
    ) -> Answer | None:
        failure: Exception = OSError("no connection")
        for wait in waits():
            await asyncio.sleep(wait)
            try:
                if self._open is None:
                    await self._connect()
                with suppress(ConnectionClosed):
                    await self._connection.send(self._talk.say(frames, return_state))
                async with asyncio.timeout(self._talk.timeout):
                    text = await self._connection.recv()
                answer = self._talk.hear(text)
            except RequestError as error:
                if self._open is not None or error.status != 503:
                    raise
                failure = error  # no place, or not ready yet
            except TimeoutError:
                raise
            except LOST as error:
                await self.close()
                failure = closed(error)
                if not self._talk.begun or isinstance(failure, RequestError):
                    raise failure from None
            else:
                if answer is None:
                    await self.close()
                if answer is not None or frames is None:
                    return answer
        raise failure

    async def _connect(self) -> None:
        stack, talk = AsyncExitStack(), self._talk
        talk.begin()
        connected = websockets.asyncio.client.connect(
            talk.address, create_connection=_AsyncConnection, **talk.options
        )
        self._connection = await stack.enter_async_context(connected)
        self._open, talk.begun = stack, True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
