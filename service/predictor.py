"""A request's bytes in, its answer's bytes out."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from . import codec
from .errors import TooLarge
from .registry import Model, Registry
from .settings import Settings
from .work import Answer

INLINE_BYTES = 64 * 1024  # parsing this takes less than a millisecond


class Predictor:
    """Parses, asks the model's scheduler, and writes the answer."""

    def __init__(self, registry: Registry, settings: Settings):
        self._registry, self._settings = registry, settings
        # One thread: large bodies must not crowd the engine off the cores.
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="parser")

    async def predict(self, body: bytes, task: str) -> bytes:
        """The JSON answer to a JSON request.

        Raises:
            ServiceError: the refusal that the caller is to be told.
            CancelledError: the caller has gone; what waits is dropped.
        """
        if len(body) <= INLINE_BYTES:
            model, top_k, sequences = self._read(body, task)
        else:
            loop = asyncio.get_running_loop()
            model, top_k, sequences = await loop.run_in_executor(
                self._parser, self._read, body, task
            )
        answers = await asyncio.wrap_future(model.scheduler.submit(sequences))
        return await self._write(model, answers, top_k)

    def _read(
        self, body: bytes, task: str
    ) -> tuple[Model, int | None, list[np.ndarray]]:
        self._check_size(body)
        request = codec.decode(body)
        model = self._registry.choose(request.model, task)
        return (
            model,
            request.top_k,
            codec.arrays(request, model.metadata, self._settings),
        )

    def _check_size(self, body: bytes) -> None:
        """Refuse what must be over a limit before it is parsed: lists without
        numbers cost a parser most, and hold the interpreter meanwhile."""
        features = [m.metadata.input.features for m in self._registry.models.values()]
        steps = self._settings.max_cells // min(features, default=1)
        if body.count(b"[") > 1 + self._settings.max_sequences + steps:
            limit = f"{self._settings.max_cells} numbers in a request"
            raise TooLarge(f"more steps than could hold at most {limit}")

    async def _write(
        self, model: Model, answers: list[Answer], top_k: int | None
    ) -> bytes:
        numbers = sum(answer.probabilities.size for answer in answers)
        if numbers * 16 <= INLINE_BYTES:
            return codec.encode(model.metadata, answers, top_k)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._parser, codec.encode, model.metadata, answers, top_k
        )

    def close(self) -> None:
        self._parser.shutdown(wait=False)
