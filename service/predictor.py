"""A request's bytes in, its answer's bytes out."""

import time
from typing import Any

import numpy as np

from . import codec, reader
from .catalogue import Catalogue, Model
from .errors import NotReady
from .quick import Asked
from .reader import DIGITS, INLINE_BYTES, Elsewhere, Reader
from .state_tokens import State

# Of the W3C's Server Timing; milliseconds.
TIMING = b"parse;dur=%.3f, queue;dur=%.3f, infer;dur=%.3f, serialize;dur=%.3f"
AGAIN = {"Retry-After": "1"}


class Predictor:
    """Parses, asks the model's workers, and writes the answer."""

    def __init__(self, catalogue: Catalogue, reader: Reader, elsewhere: Elsewhere):
        self._catalogue, self._reader, self._elsewhere = catalogue, reader, elsewhere

    async def predict(self, body: bytes, task: str) -> tuple[bytes, bytes]:
        """The JSON answer to a JSON request, and where its time went, as the header
        `Server-Timing` has it.

        Raises:
            ServiceError: the refusal that the caller is to be told.
            CancelledError: the caller has gone; what waits is dropped.
        """
        begun = time.perf_counter()
        features = self._catalogue.features[task]
        if len(body) <= INLINE_BYTES:
            asked = self._reader.read(body, features)
        else:
            asked = await self._elsewhere.run(reader.read, body, features)
        model = self._catalogue.choose(asked.model, task)
        wanted = model.metadata.input.features
        if not asked.sequences or asked.sequences[0].shape[1] != wanted:
            raise NotReady("the model came while the request was read", headers=AGAIN)
        before = self._states(model, asked)
        request = model.admission.submit(
            asked.sequences, [state.packed for state in before], keep=asked.return_state
        )
        answers = await request.future
        answered = time.perf_counter()
        members: list[dict[str, Any]] = []
        if asked.return_state:
            steps = map(len, asked.sequences)
            members = [
                {"steps": state.steps, "state": model.tokens.sign(state)}
                for state in map(State.after, before, steps, request.states)
            ]
        text = await self._write(model, answers, asked.top_k, members)
        spent = (
            request.since - begun,
            request.begun - request.since,
            request.ended - request.begun,
            time.perf_counter() - answered,
        )
        return text, TIMING % tuple([1000 * seconds for seconds in spent])

    def _states(self, model: Model, asked: Asked) -> list[State]:
        """Where the sequences go on from."""
        tokens = asked.states or [None] * len(asked.sequences)
        if asked.return_state or any(token is not None for token in tokens):
            self._catalogue.check_streamable(model)
        return model.tokens.verify_all(tokens)

    async def _write(
        self,
        model: Model,
        answers: list[np.ndarray],
        top_k: int | None,
        members: list[dict[str, Any]],
    ) -> bytes:
        size = DIGITS * sum(answer.size for answer in answers)
        size += sum(len(member["state"]) for member in members)
        given = (model.metadata, answers, top_k, members)
        if size <= INLINE_BYTES:
            return codec.encode(*given)
        return await self._elsewhere.run(codec.encode, *given)
