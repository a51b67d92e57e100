"""The bodies of the clients' requests."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import ArrayLike


def encode(
    sequences: Sequence[ArrayLike],
    model: str | None,
    top_k: int | None,
    states: Sequence[str | None] | None,
    return_state: bool,
) -> bytes:
    """The body of `POST /classify` and `POST /label`."""
    # The network computes in float32, which has half the digits of float64 in JSON.
    body: dict[str, Any] = {
        "sequences": [np.ascontiguousarray(s, np.float32) for s in sequences]
    }
    if model is not None:
        body["model"] = model
    if top_k is not None:
        body["top_k"] = top_k
    if states is not None:
        body["states"] = list(states)
    if return_state:
        body["return_state"] = True
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
