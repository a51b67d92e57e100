"""A stream: a sequence whose frames come as they happen.

One that waits costs the memory of its state. Its messages are computed in the lanes
of its model's schedulers, together with whatever else is there.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from service.callers.caller import Caller
from service.callers.memory_budget import Reservation
from service.codecs import native, process, stream_messages
from service.codecs.native import NUMBER_BYTES
from service.codecs.process import INLINE_BYTES, CodecProcesses, RequestDecoder
from service.codecs.stream_messages import StreamMessage
from service.errors import ServiceError
from service.http.middleware import as_service_error
from service.registry.catalog import Model
from service.registry.state_tokens import INITIAL_STATE, State
from service.telemetry.metrics import Metrics
from service.worker.protocol import JobFailure, JobResult

UNCOUNTED_BYTES = 4096  # a shorter message is not counted: it takes little
IDLE = StreamMessage(None)  # no message is under way
Message = bytes | ServiceError  # an error in the place of one that can't be read
Done = Callable[[bytes, bool], None]


class Stream:
    """Answers one message after another.

    By callbacks: a task's turns for each message would take a good part of its time.
    """

    def __init__(
        self,
        model: Model,
        top_k: int | None,
        stream_id: str,
        caller: Caller,
        reader: RequestDecoder,
        elsewhere: CodecProcesses,
        metrics: Metrics,
    ):
        self.model, self.top_k, self.id = model, top_k, stream_id
        self.caller = caller
        self.state = INITIAL_STATE
        self.messages = 0
        self.faults = 0  # messages that were the caller's fault, in a row
        self.computes = False
        self.opened = time.monotonic()
        self.since = self.opened  # its caller was last heard, or answered
        # How it is told why it must end: by what talks with its caller.
        self.end: Callable[[str], None] = _nothing
        self._reader, self._elsewhere, self._metrics = reader, elsewhere, metrics
        self._features = model.metadata.input.features
        self._closed = False
        # Of the message under way:
        self._done: Done
        self._begun = 0.0
        self._sent = IDLE
        self._before = INITIAL_STATE
        self._task: asyncio.Task[None] | None = None
        self._given: Any = None
        self._reservation = Reservation(caller.account)

    async def answer(self, message: Message) -> tuple[bytes, bool]:
        """A message's answer (there may be none), and whether it was the last."""
        future: asyncio.Future[tuple[bytes, bool]]
        future = asyncio.get_running_loop().create_future()

        def done(line: bytes, ends: bool) -> None:
            if not future.done():
                future.set_result((line, ends))

        self.take(message, done)
        return await future

    def take(self, message: Message, done: Done) -> None:
        """Answer a message; not before the last one was.

        Args:
            done: called with what `answer` returns, perhaps at once.
        """
        self.messages += 1
        self.computes, self._begun = True, time.perf_counter()
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
                self._later(self._read_elsewhere(message))
            else:
                self._compute(self._reader.decode_message(message, self._features))
        except Exception as error:
            self._refuse(error)

    def close(self) -> None:
        """Its caller has gone: drop what is under way."""
        self._closed = True
        self.end = _nothing
        self._reservation.release()
        if self._task is not None:
            self._task.cancel()
        if self._given is not None:
            self.model.admission.cancel(self._given)
        del self.model  # what still refers to this must not keep an old version

    def last(self, reason: str) -> bytes:
        """The line that tells its caller why it ends."""
        token = self._token(self.state) if self.state.packed else None
        return stream_messages.encode_end(reason, self.state.steps, token)

    def _token(self, state: State) -> str:
        return self.model.tokens.sign(state, self.caller.owner)

    def _compute(self, sent: StreamMessage) -> None:
        state = self.state
        if sent.state is None:
            state = INITIAL_STATE
        elif sent.state is not msgspec.UNSET:
            state = self.model.tokens.verify(sent.state, owner=self.caller.owner)
        self._sent, self._before = sent, state
        if sent.frames is None:
            self._tell(b"", state)
            return
        native.check_response_size(self.model.metadata, 1, len(sent.frames), self.top_k)
        size = self._reservation.size
        if size:  # a long message: its frames are kept until they are computed
            self._reservation.resize(size + 2 * sent.frames.nbytes)
        self._given = self.model.admission.advance(
            sent.frames, state.packed, self._computed, self.caller.id
        )

    def _computed(self, told: JobResult | JobFailure) -> None:
        self._given = None
        if self._closed:
            return
        try:
            sent, model = self._sent, self.model
            steps = len(sent.frames)  # type: ignore[arg-type]
            answer = model.admission.result_array(told, steps)
            after = self._before.after(steps, told.state)  # type: ignore[union-attr]
            token = self._token(after) if sent.return_state else None
            given = (model.metadata, answer, after.steps, self.top_k, token)
            size = answer.size * NUMBER_BYTES
            if size > INLINE_BYTES:
                self._later(self._write_elsewhere(size, after, *given))
            else:
                self._tell(stream_messages.encode_answer(*given), after)
        except Exception as error:
            self._refuse(error)

    async def _read_elsewhere(self, message: bytes) -> None:
        try:
            read = process.decode_message
            turn, size = self.caller.id, len(message)
            sent = await self._elsewhere.run(turn, size, read, message, self._features)
            self._compute(sent)
        except Exception as error:
            self._refuse(error)

    async def _write_elsewhere(self, size: int, after: State, *given: Any) -> None:
        try:
            write, turn = stream_messages.encode_answer, self.caller.id
            line = await self._elsewhere.run(turn, size, write, *given)
            self._tell(line, after)
        except Exception as error:
            self._refuse(error)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)

    def _tell(self, line: bytes, after: State) -> None:
        self.state = after
        seconds = time.perf_counter() - self._begun
        self.model.admission.metrics.stream_seconds.observe(seconds)
        self.faults = 0
        self._answer(line, self._sent.end)

    def _answer(self, line: bytes, ends: bool) -> None:
        self.computes, self.since = False, time.monotonic()
        # One that waits for its caller keeps its state, and nothing of a message.
        self._sent, self._before, self._task = IDLE, INITIAL_STATE, None
        self._reservation.release()
        self._done(line, ends)

    def _refuse(self, error: Exception) -> None:
        """The message was in vain; the state stands."""
        refusal = as_service_error(error, self.id)
        self.faults += refusal.status < 500
        self._metrics.refused.labels(refusal.slug).inc()
        self._answer(
            stream_messages.encode_error(refusal, self.state.steps, self.id), False
        )


def _nothing(reason: str) -> None:
    pass
