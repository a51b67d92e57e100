"""A live stream: a sequence whose frames come as they happen.

A waiting stream only costs the memory of its state. Messages are computed in the lanes
of the model's schedulers, batched with whatever else is there.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import numpy as np

from service.callers.caller import Caller
from service.callers.memory_budget import Reservation
from service.codecs import native, stream_messages
from service.codecs.fast_json import PredictRequest
from service.codecs.native import NUMBER_BYTES
from service.codecs.process import INLINE_BYTES, CodecProcesses, RequestDecoder
from service.codecs.stream_messages import StreamMessage
from service.errors import ServiceError, VersionGone
from service.http.middleware import as_service_error
from service.registry.catalog import Model
from service.registry.state_tokens import INITIAL_STATE, State
from service.telemetry.metrics import Metrics
from service.worker.protocol import JobFailure, JobResult

UNCOUNTED_BYTES = 4096  # shorter messages do not count against the memory budget
RETIRED = "retired"  # why a stream ends whose version no worker has any more
NO_MESSAGE = StreamMessage(None)
Message = bytes | ServiceError  # an error in place of a message that can't be read
Done = Callable[[bytes, bool], None]  # takes an answer, and whether the stream ends


class Stream:
    """Answers one message after another.

    It uses callbacks: switching tasks for each message would take much of its time.
    """

    def __init__(
        self,
        model: Model,
        top_k: int | None,
        stream_id: str,
        caller: Caller,
        codecs: CodecProcesses,
        metrics: Metrics,
    ):
        self.model, self.top_k, self.id = model, top_k, stream_id
        self.caller = caller
        self.state = INITIAL_STATE
        self.messages = 0
        self.client_errors = 0  # in a row
        self.busy = False  # with a message
        self.opened = time.monotonic()
        self.last_active = self.opened  # the last message, or the last answer
        # The handler sets it; called with the reason for which the stream must end.
        self.end: Callable[[str], None] = _ignore
        self._codecs, self._metrics = codecs, metrics
        self._features = model.metadata.input.features
        self._input = (self._features, *model.decoding)
        self._closed = False
        # Of the current message:
        self._done: Done
        self._steps = 0
        self._started = 0.0
        self._message = NO_MESSAGE
        self._before = INITIAL_STATE
        self._time: int | None = None  # of the message's last record
        self._task: asyncio.Task[None] | None = None
        self._job: Any = None
        self._reservation = Reservation(caller.account)

    async def answer(self, message: Message) -> tuple[bytes, bool]:
        """The answer to a message (it may be empty), and whether the stream ends."""
        future: asyncio.Future[tuple[bytes, bool]]
        future = asyncio.get_running_loop().create_future()

        def done(line: bytes, ends: bool) -> None:
            if not future.done():
                future.set_result((line, ends))

        self.take(message, done)
        return await future

    def take(self, message: Message, done: Done) -> None:
        """Answer a message. The one before it must have been answered.

        Args:
            done: called with what `answer` returns, perhaps at once.
        """
        self.messages += 1
        self.busy, self._started = True, time.perf_counter()
        self._done = done
        if isinstance(message, ServiceError):
            self._refuse(message)
            return
        try:
            if self.caller.key is not None:
                self.caller.key.take()
            if len(message) > UNCOUNTED_BYTES:
                self._reservation.resize(len(message))
            if len(message) > INLINE_BYTES:
                self._start_task(self._decode_large(message))
            else:
                decoder = self._codecs.decoder
                decoded = decoder.decode_message(message, *self._input)
                self._begin(decoded)
                if decoded.tokens is None and decoded.records is None:
                    self._compute(decoded.frames)
                else:
                    self._start_task(self._encode(decoded))
        except Exception as error:
            self._refuse(error)

    def close(self) -> None:
        """Drop the current message: the client has gone."""
        self._closed = True
        self.end = _ignore
        self._reservation.release()
        if self._task is not None:
            self._task.cancel()
        if self._job is not None:
            self.model.admission.cancel(self._job)
        del self.model  # other references to the stream must not keep an old version

    def last_line(self, reason: str) -> bytes:
        """The line that tells the client why the stream ends."""
        token = self._sign(self.state) if self.state.packed else None
        return stream_messages.encode_end(reason, self.state.steps, token)

    def _sign(self, state: State) -> str:
        return self.model.tokens.sign(state, self.caller.owner)

    def _begin(self, message: StreamMessage) -> None:
        """Begin with a message: from the state of the stream, or from that of its token."""
        state = self.state
        if message.state is None:
            state = INITIAL_STATE
        elif message.state is not msgspec.UNSET:
            state = self.model.tokens.verify(message.state, owner=self.caller.owner)
        self._message, self._before, self._time = message, state, state.time

    def _compute(self, frames: np.ndarray | None) -> None:
        state = self._before
        if frames is None:
            self._succeed(b"", state)
            return
        self._steps = len(frames)
        native.check_response_size(self.model.metadata, 1, len(frames), self.top_k)
        size = self._reservation.size
        if size:  # a long message, whose frames are kept until they are computed
            self._reservation.resize(size + 2 * frames.nbytes)
        self._job = self.model.admission.advance(
            frames, state.packed, self._computed, self.caller.id
        )

    def _computed(self, result: JobResult | JobFailure) -> None:
        self._job = None
        if self._closed:
            return
        try:
            message, model = self._message, self.model
            steps = self._steps
            probabilities = model.admission.result_array(result, steps)
            after = self._before.after(steps, result.state, self._time)  # type: ignore[union-attr]
            token = self._sign(after) if message.return_state else None
            answer = (model.metadata, probabilities, after.steps, self.top_k, token)
            size = probabilities.size * NUMBER_BYTES
            if size > INLINE_BYTES:
                self._start_task(self._encode_large(size, after, *answer))
            else:
                self._succeed(stream_messages.encode_answer(*answer), after)
        except Exception as error:
            self._refuse(error)

    async def _decode_large(self, message: bytes) -> None:
        try:
            decode = RequestDecoder.decode_message
            decoded = await self._codecs.decode(
                self.caller.id, decode, message, *self._input
            )
            self._begin(decoded)
            await self._encode(decoded)
        except Exception as error:
            self._refuse(error)

    async def _encode(self, message: StreamMessage) -> None:
        try:
            if message.tokens is None and message.records is None:
                self._compute(message.frames)
                return
            request = PredictRequest(
                [],
                None,
                None,
                tokens=None if message.tokens is None else [message.tokens],
                records=None if message.records is None else [message.records],
            )
            encoded = await self.model.encode(request, [self._before], ["records"])
            (frames,), (self._time,) = encoded
            self._compute(frames)
        except Exception as error:
            self._refuse(error)

    async def _encode_large(self, size: int, after: State, *answer: Any) -> None:
        try:
            encode = stream_messages.encode_answer
            line = await self._codecs.run(self.caller.id, size, encode, *answer)
            self._succeed(line, after)
        except Exception as error:
            self._refuse(error)

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)

    def _succeed(self, line: bytes, after: State) -> None:
        self.state = after
        seconds = time.perf_counter() - self._started
        self.model.admission.metrics.stream_seconds.observe(seconds)
        self.client_errors = 0
        self._finish(line, self._message.end)

    def _refuse(self, error: Exception) -> None:
        """Answer with an error; the state stays as it was."""
        failure = as_service_error(error, self.id)
        self.client_errors += failure.status < 500
        self._metrics.refused.labels(failure.slug).inc()
        if isinstance(failure, VersionGone):
            self.end(RETIRED)  # no later message can be answered either
        line = stream_messages.encode_error(failure, self.state.steps, self.id)
        self._finish(line, False)

    def _finish(self, line: bytes, ends: bool) -> None:
        self.busy, self.last_active = False, time.monotonic()
        # A waiting stream keeps its state, and nothing of a message.
        self._message, self._before, self._task = NO_MESSAGE, INITIAL_STATE, None
        self._reservation.release()
        self._done(line, ends)


def _ignore(reason: str) -> None:
    pass
