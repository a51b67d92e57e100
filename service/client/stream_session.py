"""The protocol and the state of a stream, independent of its connection."""

from collections.abc import Mapping
from ssl import SSLContext
from typing import Any, TypedDict, TypeVar

import httpx
import numpy as np
import orjson
from numpy.typing import ArrayLike
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
)

from service.client.connection import without_credentials
from service.client.errors import InvalidAnswer, RequestError, StreamLost
from service.client.results import (
    Classification,
    Labelling,
    convert,
    parse_json,
    problem,
)

CLOSE_STATUS = {1007: 422, 1009: 413}  # close codes of RFC 6455: not UTF-8, too long
PROTOCOL_ERRORS = {1002, 1007}  # close codes that we send: invalid frame, not UTF-8
SWITCHING_PROTOCOLS = 101  # HTTP's status of an open WebSocket
REFUSED = "The message was refused"

Answer = Classification | Labelling


Kind = TypeVar("Kind", Classification, Labelling)
METHODS = {Classification: "classify", Labelling: "label"}


def expect(answer: Answer, kind: type[Kind]) -> Kind:
    """The answer as that of a model for one of the tasks.

    Raises:
        ValueError: the model is for the other task.
    """
    if isinstance(answer, kind):
        return answer
    raise ValueError(f"the model is to {METHODS[type(answer)]}, not {METHODS[kind]}")


class _End(TypedDict):
    steps: int
    state: str | None


class StreamSession:
    """The protocol and the state of a stream, independent of its connection."""

    def __init__(
        self,
        base: httpx.URL,
        model: str,
        top_k: int | None,
        state: str | None,
        resume: bool,
        timeout: float,
        headers: Mapping[str, str] | None,
        verify: bool | SSLContext,
    ):
        scheme = {"http": "ws", "https": "wss"}[base.scheme]
        query = {"model": model} | ({} if top_k is None else {"top_k": str(top_k)})
        self.address = without_credentials(base)
        self.url = str(base.join("stream").copy_with(scheme=scheme, params=query))
        self.options: dict[str, Any] = {
            "compression": None,  # costs more time than it saves on short messages
            "max_size": None,
            "open_timeout": timeout,
            "close_timeout": 1,
            "additional_headers": headers,
        }
        if base.scheme == "https":
            self.options["ssl"] = httpx.create_ssl_context(verify=verify)
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
        """A message with frames, a text, or a list of words or records; None ends the
        stream."""
        message: dict[str, Any] = {}
        if self._new_connection and self.state is not None:
            message["state"] = self.state
        if frames is None:
            message["end"] = True
        else:
            if isinstance(frames, str):
                message["text"] = frames
            elif isinstance(frames, list) and frames and isinstance(frames[0], str):
                message["tokens"] = frames
            elif isinstance(frames, list) and frames and isinstance(frames[0], Mapping):
                message["records"] = frames
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
        if isinstance(error, TimeoutError | StreamLost):
            raise error
        reason = _closed(error)
        if isinstance(reason, RequestError) or not self.connected_before:
            raise reason from None
        return reason


def _refusal(error: object) -> RequestError:
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


def failed_handshake(error: InvalidHandshake) -> Exception:
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
