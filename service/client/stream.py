"""Live streams: `Stream` blocks, `AsyncStream` is for asyncio.

A stream outlives its connection. If the last answer had a state token, any service with
the same key and bundle continues from it, and a message without an answer is sent again.
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any, Self, TypedDict

import httpx
import numpy as np
import orjson
import websockets.asyncio.client
import websockets.sync.client
from numpy.typing import ArrayLike
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
    WebSocketException,
)

from service.client.results import (
    Classification,
    InvalidAnswer,
    Labelling,
    RequestError,
    convert,
    parse_json,
    problem,
)

# Seconds before each attempt to send a message: the first, and eight retries.
DELAYS = (0.0, *(0.1 * 2**attempt for attempt in range(8)))
CLOSE_STATUS = {1007: 422, 1009: 413}  # close codes of RFC 6455: not UTF-8, too long
PROTOCOL_ERRORS = {1002, 1007}  # close codes that we send: invalid frame, not UTF-8
SWITCHING_PROTOCOLS = 101  # HTTP's status of an open WebSocket
REFUSED = "The message was refused"
CONNECTION_ERRORS = (WebSocketException, EOFError, OSError)

Answer = Classification | Labelling


class StreamLost(Exception):
    """The connection broke, and there is no state token to continue from."""


class _End(TypedDict):
    steps: int
    state: str | None


class StreamSession:
    """The protocol and the state of a stream, independent of its connection."""

    def __init__(
        self,
        address: httpx.URL,
        model: str,
        top_k: int | None,
        state: str | None,
        resume: bool,
        timeout: float,
        headers: Mapping[str, str] | None,
    ):
        scheme = {"http": "ws", "https": "wss"}[address.scheme]
        query = {"model": model} | ({} if top_k is None else {"top_k": str(top_k)})
        self.address = str(address.copy_with(scheme=scheme, params=query))
        self.options: dict[str, Any] = {
            "compression": None,  # costs more time than it saves on short messages
            "max_size": None,
            "open_timeout": timeout,
            "close_timeout": 1,
            "additional_headers": headers,
        }
        self.timeout = timeout
        self.steps = 0
        self.state = state  # the last token
        self.connected_before = False
        self._resume = resume
        self._resumable = True  # the token is that of the last step
        self._new_connection = True  # nothing was answered over it yet

    def connects(self) -> None:
        """Prepare for another connection.

        Raises:
            StreamLost: another connection could not continue the sequence.
        """
        if not self._resumable:
            raise StreamLost("the connection broke, and there is no token to go on")
        self._new_connection = True

    def encode(self, frames: ArrayLike | None, return_state: bool) -> str:
        """A message with frames; None ends the stream."""
        message: dict[str, Any] = {}
        if self._new_connection and self.state is not None:
            message["state"] = self.state
        if frames is None:
            message["end"] = True
        else:
            message["frames"] = np.ascontiguousarray(frames, np.float32)
            message["return_state"] = return_state or self._resume
        return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY).decode()

    def decode(self, text: str | bytes) -> Answer | None:
        """The answer in a message; None if the service ended the stream.

        Raises:
            RequestError: the service refused the last message; the stream goes on.
            InvalidAnswer: not a message of the service; the connection can't be used
                any more.
        """
        status = SWITCHING_PROTOCOLS
        message = convert(parse_json(text, status), dict[str, Any], status)
        if "error" in message:
            raise _refusal(message["error"])
        if "end" in message:
            end = convert(message, _End, status)
            # If nothing was answered over this connection, our token is still right.
            if not self._new_connection or end["state"] is not None:
                self.steps, self.state = end["steps"], end["state"]
                self._resumable = True
            return None
        kind: type[Answer] = Classification if "label" in message else Labelling
        answer: Answer = convert(message, kind, status)
        if answer.steps is None:
            raise InvalidAnswer(status, "Expected `steps`")
        self.steps, self._new_connection = answer.steps, False
        self._resumable = answer.state is not None
        self.state = answer.state or self.state
        return answer

    def check_retry(self, error: Exception, connected: bool) -> Exception:
        """The error to raise if no retry succeeds.

        Raises:
            Exception: the error itself, if a retry is of no use.
        """
        if isinstance(error, RequestError):
            # Of the handshake: no free stream, or the service isn't ready yet.
            if connected or error.status != 503:
                raise error
            return error
        if isinstance(error, TimeoutError):
            raise error
        reason = _closed(error)
        if isinstance(reason, RequestError) or not self.connected_before:
            raise reason from None
        return reason


def _refusal(error: Any) -> RequestError:
    """The exception for a message with an error."""
    status = error.get("status") if isinstance(error, dict) else None
    if type(status) is int and 400 <= status < 600:
        return RequestError(status, error, {}, REFUSED)
    return InvalidAnswer(SWITCHING_PROTOCOLS, "Expected `status` - at `$.error`")


def _closed(error: Exception) -> Exception:
    """The exception for a broken connection: a RequestError or an OSError."""
    if isinstance(error, ConnectionClosed):
        sent, received = error.sent, error.rcvd
        if sent is not None and not error.rcvd_then_sent:  # we closed first
            if sent.code in PROTOCOL_ERRORS:
                return InvalidAnswer(SWITCHING_PROTOCOLS, sent.reason)
        elif received is not None and received.code in CLOSE_STATUS:
            detail = {"detail": received.reason}
            return RequestError(CLOSE_STATUS[received.code], detail, {}, REFUSED)
    return error if isinstance(error, OSError) else ConnectionError(str(error))


def _failed_handshake(error: InvalidHandshake) -> Exception:
    """The exception for a failed handshake.

    It must not be one of websockets' own: of those websockets would follow a redirect,
    and send the caller's headers, an API key among them, to another server.
    """
    if isinstance(error, InvalidMessage):
        return error  # not HTTP
    if not isinstance(error, InvalidStatus):
        return InvalidAnswer(SWITCHING_PROTOCOLS, f"no WebSocket: {error}")
    response = error.response
    if response.status_code < 300:
        return InvalidAnswer(response.status_code, "no WebSocket was opened")
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    body = problem(bytes(response.body or b""))
    return RequestError(response.status_code, body, headers, response.reason_phrase)


def _is_fatal(error: BaseException) -> bool:
    """True if the next message on this connection could answer an earlier one."""
    return not isinstance(error, RequestError) or isinstance(error, InvalidAnswer)


class _Connection(websockets.sync.client.ClientConnection):
    def handshake(self, *arguments: Any, **options: Any) -> None:
        try:
            super().handshake(*arguments, **options)
        except InvalidHandshake as error:
            raise _failed_handshake(error) from None


class _AsyncConnection(websockets.asyncio.client.ClientConnection):
    async def handshake(self, *arguments: Any, **options: Any) -> None:
        try:
            await super().handshake(*arguments, **options)
        except InvalidHandshake as error:
            raise _failed_handshake(error) from None


class _BaseStream:
    def __init__(self, *arguments: Any):
        self._session = StreamSession(*arguments)

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

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._open: ExitStack | None = None
        self._connection: websockets.sync.client.ClientConnection
        self._lock = threading.Lock()

    def send(self, frames: ArrayLike, *, return_state: bool = False) -> Answer:
        """Send frames [t, F]; returns the class so far, or the class of each frame.

        Raises:
            RequestError: the service refused the message, and the stream goes on; or
                it refused the stream. Redirects are not followed: they raise it too,
                with the location.
            InvalidAnswer: the answer is not the service's. Nothing was taken, and the
                next message is sent over another connection.
            StreamLost: the connection broke, and there is no token to continue from.
            TimeoutError, OSError: no answer, or no connection.
        """
        answer = self._exchange(frames, return_state)
        assert answer is not None
        return answer

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
        with self._lock:
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
            session.address, create_connection=_Connection, **session.options
        )
        self._connection = stack.enter_context(connection)
        self._open, session.connected_before = stack, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(_BaseStream):
    """`Stream` for asyncio."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._open: AsyncExitStack | None = None
        self._connection: websockets.asyncio.client.ClientConnection
        self._lock = asyncio.Lock()

    async def send(self, frames: ArrayLike, *, return_state: bool = False) -> Answer:
        """Send frames [t, F]; see `Stream.send`."""
        answer = await self._exchange(frames, return_state)
        assert answer is not None
        return answer

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
            try:
                return await self._retry(frames, return_state)
            except BaseException as error:
                # Without the closing handshake: a cancelled task must not wait for it.
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
            session.address, create_connection=_AsyncConnection, **session.options
        )
        self._connection = await stack.enter_async_context(connection)
        self._open, session.connected_before = stack, True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
