"""What a client says and hears in a stream, over one connection after another.

As long as the last answer brought a token, any service with the same key and bundle
goes on from it; a message that was not answered is sent again.
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

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

from service.client.results import (
    Classification,
    InvalidAnswer,
    Labelling,
    RequestError,
    parsed,
    problem,
    typed,
)

AGAIN = 8  # attempts to go on; the waits before them double
FIRST_WAIT = 0.1  # seconds
FAULTS = {1007: 422, 1009: 413}  # of RFC 6455: no text, too long
THEIRS = {1002, 1007}  # codes with which we close: no frame, no text
SWITCHED = 101  # HTTP's status of a stream that is open
TITLE = "The message can't be taken"

Answer = Classification | Labelling


class StreamLost(Exception):
    """The connection broke, and there was no token to go on from."""


class _End(TypedDict):
    steps: int
    state: str | None


class StreamSession:
    """What is said and heard, over one connection after another."""

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
        chosen = {"model": model} | ({} if top_k is None else {"top_k": str(top_k)})
        self.address = str(address.copy_with(scheme=scheme, params=chosen))
        self.options: dict[str, Any] = {
            "compression": None,  # numbers are short, and time is
            "max_size": None,
            "open_timeout": timeout,
            "close_timeout": 1,
            "additional_headers": headers,
        }
        self.timeout = timeout
        self.steps = 0
        self.state = state  # the last token
        self.begun = False  # there was a connection
        self._exact = True  # nothing was taken since
        self._resume = resume
        self._fresh = True  # the service doesn't know where the sequence is

    def begin(self) -> None:
        """There will be another connection.

        Raises:
            StreamLost: it could not go on from where the last one was.
        """
        if not self._exact:
            raise StreamLost("the connection broke, and there is no token to go on")
        self._fresh = True

    def say(self, frames: ArrayLike | None, return_state: bool) -> str:
        body: dict[str, Any] = {}
        if self._fresh and self.state is not None:
            body["state"] = self.state
        if frames is None:
            body["end"] = True
        else:
            body["frames"] = np.ascontiguousarray(frames, np.float32)
            body["return_state"] = return_state or self._resume
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY).decode()

    def hear(self, text: str | bytes) -> Answer | None:
        """An answer; None where the service has ended the stream.

        Raises:
            RequestError: a message was at fault; the stream goes on.
            InvalidAnswer: it is no answer; what comes after it can't be trusted.
        """
        told = typed(parsed(text, SWITCHED), dict[str, Any], SWITCHED)
        if "error" in told:
            raise _fault(told["error"])
        if "end" in told:
            end = typed(told, _End, SWITCHED)
            # Where it has taken nothing over this connection, ours is the token.
            if not self._fresh or end["state"] is not None:
                self.steps, self.state, self._exact = end["steps"], end["state"], True
            return None
        answer: Answer
        if "label" in told:
            answer = typed(told, Classification, SWITCHED)
        else:
            answer = typed(told, Labelling, SWITCHED)
        if answer.steps is None:
            raise InvalidAnswer(SWITCHED, "Expected `steps`")
        self.steps, self._fresh = answer.steps, False
        self._exact = answer.state is not None
        self.state = answer.state or self.state
        return answer


def _fault(error: Any) -> RequestError:
    """What the service says of a message."""
    status = error.get("status") if isinstance(error, dict) else None
    if type(status) is int and 400 <= status < 600:
        return RequestError(status, error, {}, TITLE)
    return InvalidAnswer(SWITCHED, "Expected `status` - at `$.error`")


def waits() -> Iterator[float]:
    """Seconds to wait before each attempt to go on."""
    yield 0
    for attempt in range(AGAIN):
        yield FIRST_WAIT * 2**attempt


def refused(error: InvalidHandshake) -> Exception:
    """What is raised of a handshake that failed."""
    if isinstance(error, InvalidMessage):
        return error  # no HTTP
    if not isinstance(error, InvalidStatus):
        return InvalidAnswer(SWITCHED, f"no WebSocket: {error}")
    response = error.response
    if response.status_code < 300:
        return InvalidAnswer(response.status_code, "no WebSocket was opened")
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    told = problem(bytes(response.body or b""))
    return RequestError(response.status_code, told, headers, response.reason_phrase)


def closed(error: Exception) -> Exception:
    """What is raised of a connection that broke: whose fault it was, or an OSError."""
    if isinstance(error, ConnectionClosed):
        sent, received = error.sent, error.rcvd
        if sent is not None and not error.rcvd_then_sent:  # ours was first
            if sent.code in THEIRS:
                return InvalidAnswer(SWITCHED, sent.reason)
        elif received is not None and received.code in FAULTS:
            told = {"detail": received.reason}
            return RequestError(FAULTS[received.code], told, {}, TITLE)
    return error if isinstance(error, OSError) else ConnectionError(str(error))
