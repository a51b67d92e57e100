"""A stream's messages: what a caller sends, and what is answered, as JSON lines.

    > {"frames": [[F floats] x t]}           < {"steps": n, "label": ..., ...}
    > {"frames": ..., "return_state": true}  < {"steps": n, ..., "state": token}
    > {"state": token, "frames": ...}        goes on from there; null: from the start
    > {"end": true}                          < {"end": "done", "steps": n, "state": token}

A message at fault is answered with {"error": problem details, "steps": n}; the
stream goes on from where it was.
"""

from typing import Any, NamedTuple

import msgspec
import numpy as np
import orjson

from model.bundle.bundle import Metadata
from service.codecs import native
from service.errors import FieldError, InvalidRequest, ServiceError
from service.settings import Settings


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """What a caller sends."""

    frames: list[list[float]] | None = None
    state: str | msgspec.UnsetType | None = msgspec.UNSET
    return_state: bool = False
    end: bool = False


class Sent(NamedTuple):
    """A message that was read."""

    frames: np.ndarray | None  # [t, F] float32
    state: str | msgspec.UnsetType | None = msgspec.UNSET
    return_state: bool = False
    end: bool = False


_decoder = msgspec.json.Decoder(Message)


def decode(text: bytes, features: int, settings: Settings) -> Sent:
    """A message to a model of so many features.

    Raises:
        InvalidJson, InvalidRequest, TooLarge: as `codec` has it.
    """
    message = native.decoded(_decoder, text, "message")
    frames = None
    if message.frames is not None:
        frames = native.checked(["frames"], [message.frames], features, settings)[0]
    elif not message.end:
        raise InvalidRequest(
            "there is nothing to do",
            [FieldError("frames", "is missing; or say end")],
        )
    return Sent(frames, message.state, message.return_state, message.end)


def answer(
    metadata: Metadata,
    probabilities: np.ndarray,
    steps: int,
    top_k: int | None,
    token: str | None = None,
) -> bytes:
    """The answer to frames.

    Args:
        probabilities: [C] so far (classify), or [t, C] of the frames (label).
        steps: taken so far.
    """
    line: dict[str, Any] = {"steps": steps}
    line |= native.prediction(metadata, probabilities, top_k)
    if token is not None:
        line["state"] = token
    return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY)


def refusal(error: ServiceError, steps: int, stream_id: str) -> bytes:
    """The answer to a message at fault."""
    problem = orjson.Fragment(error.body(stream_id))
    return orjson.dumps({"error": problem, "steps": steps})


def end(reason: str, steps: int, token: str | None) -> bytes:
    """The last line: why, and the state with which a later stream goes on."""
    return orjson.dumps({"end": reason, "steps": steps, "state": token})
