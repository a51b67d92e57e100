"""A request's bytes in, its answer's bytes out."""

import time

import numpy as np

from . import codec, reader
from .errors import NotReady
from .reader import INLINE_BYTES, Elsewhere, Reader
from .registry import Model, Registry
from .settings import Settings

# Of the W3C's Server Timing; milliseconds.
TIMING = b"parse;dur=%.3f, queue;dur=%.3f, infer;dur=%.3f, serialize;dur=%.3f"
AGAIN = {"Retry-After": "1"}
DIGITS = 16  # of a number in JSON


class Predictor:
    """Parses, asks the model's workers, and writes the answer."""

    def __init__(self, registry: Registry, settings: Settings):
        self._registry = registry
        self._reader, self._elsewhere = Reader(settings), Elsewhere(settings)

    async def predict(self, body: bytes, task: str) -> tuple[bytes, bytes]:
        """The JSON answer to a JSON request, and where its time went, as the header
        `Server-Timing` has it.

        Raises:
            ServiceError: the refusal that the caller is to be told.
            CancelledError: the caller has gone; what waits is dropped.
        """
        begun = time.perf_counter()
        features = self._registry.features[task]
        if len(body) <= INLINE_BYTES:
            asked = self._reader.read(body, features)
        else:
            asked = await self._elsewhere.run(reader.read, body, features)
        model = self._registry.choose(asked.model, task)
        wanted = model.metadata.input.features
        if not asked.sequences or asked.sequences[0].shape[1] != wanted:
            raise NotReady("the model came while the request was read", headers=AGAIN)
        request = model.admission.submit(asked.sequences)
        answers = await request.future
        answered = time.perf_counter()
        text = await self._write(model, answers, asked.top_k)
        spent = (
            request.since - begun,
            request.begun - request.since,
            request.ended - request.begun,
            time.perf_counter() - answered,
        )
        return text, TIMING % tuple([1000 * seconds for seconds in spent])

    async def _write(
        self, model: Model, answers: list[np.ndarray], top_k: int | None
    ) -> bytes:
        if sum(answer.size for answer in answers) * DIGITS <= INLINE_BYTES:
            return codec.encode(model.metadata, answers, top_k)
        return await self._elsewhere.run(codec.encode, model.metadata, answers, top_k)

    def start(self) -> None:
        """Have what large bodies need ready before the first comes."""
        self._elsewhere.start()

    def close(self) -> None:
        self._elsewhere.close()
