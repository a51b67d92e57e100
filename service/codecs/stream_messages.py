"""The messages of a stream, one JSON object each.

    > {"frames": [[F floats] x t]}           < {"steps": n, "label": ..., ...}
    > {"frames": ..., "return_state": true}  < {"steps": n, ..., "state": token}
    > {"text": "i"}  {"tokens": ["cat"]}     to models of characters, and of words
    > {"records": [{"event": "login"}]}      to models of records
    > {"state": token, "frames": ...}        continues from the token; null: restarts
    > {"end": true}                          < {"end": "done", "steps": n, "state": token}

An invalid message is answered with {"error": problem details, "steps": n}, and the
stream continues from where it was.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import orjson

from model.bundle.metadata import Metadata
from service.codecs import native, records, text, validation
from service.errors import FieldError, InvalidRequest, ServiceError
from service.settings import Limits


class MessageBody(msgspec.Struct, forbid_unknown_fields=True):
    """A message's JSON; `api.schemas.Message` describes it in OpenAPI."""

    frames: list[list[float]] | None = None
    text: str | None = None
    tokens: list[str] | None = None
    records: list[dict[str, Any]] | None = None
    state: str | msgspec.UnsetType | None = msgspec.UNSET
    return_state: bool = False
    end: bool = False


class StreamMessage(NamedTuple):
    """A decoded message."""

    frames: np.ndarray | None  # [t, F] float32
    state: str | msgspec.UnsetType | None = msgspec.UNSET
    return_state: bool = False
    end: bool = False
    # In place of frames:
    tokens: Sequence[str] | None = None
    records: list[dict[str, Any]] | None = None


INPUTS = ("frames", "text", "tokens", "records")  # of which a message has one at most
_decoder = msgspec.json.Decoder(MessageBody)
_SHAPE_HINTS = {
    "": 'is a list: send an object, {"frames": [...]}',
    "frames[0]": "is a number in place of a step; one step: wrap it in a list",
    "frames[0][0]": "is a list in place of a number: send the steps of one sequence",
}


def decode(
    content: bytes, features: int, limits: Limits, kind: str = "frames"
) -> StreamMessage:
    """Decode a message to a model with so many features.

    Args:
        kind: of the model's input, see `Metadata`.

    Raises:
        InvalidJson, InvalidRequest, TooLarge: see `validation`.
    """
    message = validation.decode_json(_decoder, content, "message", hints=_SHAPE_HINTS)
    expected = "text" if kind == "characters" else kind
    inputs = [name for name in INPUTS if getattr(message, name) is not None]
    for name in inputs:
        if name != expected:
            reason = f"the model takes {expected} in a stream"
            if (name, expected) == ("text", "tokens"):
                reason += ": the last word of a text may be unfinished"
            raise InvalidRequest(validation.MISMATCH, [FieldError(name, reason)])
    if not inputs and not message.end:
        raise InvalidRequest(
            f"the message has neither {expected} nor end",
            [FieldError(expected, 'is missing; or set "end": true')],
        )
    frames = tokens = None
    if message.frames is not None:
        (frames,) = validation.to_arrays(["frames"], [message.frames], features, limits)
    elif message.text is not None:
        (tokens,) = text.to_tokens(
            [message.text], None, "characters", limits, features, names=["text"]
        )
    elif message.tokens is not None:
        (tokens,) = text.to_tokens(
            None, [message.tokens], "tokens", limits, features, names=["tokens"]
        )
    elif message.records is not None:
        records.check([message.records], features, limits, names=["records"])
    return StreamMessage(
        frames,
        message.state,
        message.return_state,
        message.end,
        tokens,
        message.records,
    )


def encode_answer(
    metadata: Metadata,
    probabilities: np.ndarray,
    steps: int,
    top_k: int | None,
    token: str | None = None,
) -> bytes:
    """The answer to a message's frames.

    Args:
        probabilities: [C] after the last frame (classify), or [t, C] of the frames
            (label).
        steps: of the stream so far.
    """
    fields: dict[str, Any] = {"steps": steps}
    fields |= native.prediction(metadata, probabilities, top_k)
    if token is not None:
        fields["state"] = token
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_error(error: ServiceError, steps: int, stream_id: str) -> bytes:
    """The answer to an invalid message."""
    problem = orjson.Fragment(error.body(stream_id))
    return orjson.dumps({"error": problem, "steps": steps})


def encode_end(reason: str, steps: int, token: str | None) -> bytes:
    """The last message: the reason, and a state token for a later stream."""
    return orjson.dumps({"end": reason, "steps": steps, "state": token})
