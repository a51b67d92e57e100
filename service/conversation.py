"""What a client says and hears in a stream, over one connection after another.

As long as the last answer brought a token, any service with the same key and bundle
goes on from it; a message that was not answered is sent again.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import orjson
from numpy.typing import ArrayLike
from websockets.exceptions import ConnectionClosed, InvalidStatus

from .answers import (
    Classification,
    Labelling,
    RequestError,
    classification,
    labelling,
)

AGAIN = 8  # attempts to go on; the waits before them double
FIRST_WAIT = 0.1  # seconds
FAULTS = {1007: 422, 1009: 413}  # of RFC 6455: no text, too long

Answer = Classification | Labelling


class StreamLost(Exception):
    """The connection broke, and there was no token to go on from."""


class Conversation:
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
        """
        told = orjson.loads(text)
        if "error" in told:
            problem = told["error"]
            raise RequestError(problem["status"], problem, {}, problem["title"])
        if "end" in told:
            # Where it has taken nothing over this connection, ours is the token.
            if not self._fresh or told["state"] is not None:
                self.steps, self.state, self._exact = told["steps"], told["state"], True
            return None
        self.steps = told["steps"]
        self.state, self._exact = told.get("state", self.state), "state" in told
        self._fresh = False
        return classification(told) if "label" in told else labelling(told)


def waits() -> Iterator[float]:
    """Seconds to wait before each attempt to go on."""
    yield 0
    for attempt in range(AGAIN):
        yield FIRST_WAIT * 2**attempt


def refused(error: InvalidStatus) -> RequestError:
    """The refusal of a handshake."""
    response = error.response
    try:
        problem = orjson.loads(bytes(response.body or b""))
    except ValueError:
        problem = None
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    title = response.reason_phrase
    return RequestError(response.status_code, problem, headers, title)


def closed(error: Exception) -> Exception:
    """Why a connection ended, where that was the fault of what was sent."""
    if isinstance(error, ConnectionClosed) and error.rcvd is not None:
        status = FAULTS.get(error.rcvd.code)
        if status is not None:
            problem = {"detail": error.rcvd.reason}
            return RequestError(status, problem, {}, "The message can't be taken")
    return error
