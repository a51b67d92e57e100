"""A request's bytes in, its answer's bytes out."""

import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from model.bundle.bundle import Metadata
from service.callers.caller import Caller
from service.codecs import fast_json, native, process
from service.codecs.fast_json import PredictRequest
from service.codecs.native import NUMBER_BYTES
from service.codecs.process import INLINE_BYTES, CodecProcesses, RequestDecoder
from service.errors import DeadlineExceeded, NotReady
from service.pool.admission import AdmittedRequest
from service.registry.catalog import Catalog, Model
from service.registry.state_tokens import State

# Of the W3C's Server Timing; milliseconds.
TIMING = b"parse;dur=%.3f, queue;dur=%.3f, infer;dur=%.3f, serialize;dur=%.3f"
AGAIN = {"Retry-After": "1"}
P = ParamSpec("P")
T = TypeVar("T")
READS = 3  # a version with other features may take another's place meanwhile


class Predictor:
    """Parses, asks the model's workers, and writes the answer."""

    def __init__(
        self, catalog: Catalog, reader: RequestDecoder, elsewhere: CodecProcesses
    ):
        self._catalog, self._reader, self._elsewhere = catalog, reader, elsewhere

    async def predict(
        self, body: bytes, task: str, caller: Caller, until: float
    ) -> tuple[bytes, bytes]:
        """The JSON answer to a JSON request, and where its time went, as the header
        `Server-Timing` has it.

        Args:
            until: see `compute`.

        Raises:
            ServiceError: the refusal that the caller is to be told.
            CancelledError: the caller has gone; what waits is dropped.
        """
        begun = time.perf_counter()
        self._check_room(body, task, caller, until)
        model, asked = await self._read(body, task, caller)
        steps = list(map(len, asked.sequences))
        model.admission.wait_estimate.observe_body(len(body), sum(steps))
        del body  # frames are held in its place
        before = self._states(model, asked, caller)
        packed = [state.packed for state in before]
        native.check_response_size(model.metadata, len(steps), sum(steps), asked.top_k)
        request = await self.compute(
            model, asked.sequences, packed, caller, until=until, keep=asked.return_state
        )
        answers = request.future.result()
        answered = time.perf_counter()
        members: list[dict[str, Any]] = []
        if asked.return_state:
            sign, owner = model.tokens.sign, caller.owner
            members = [
                {"steps": state.steps, "state": sign(state, owner)}
                for state in map(State.after, before, steps, request.states)
            ]
        text = await self._write(model, answers, asked.top_k, members, caller)
        written = time.perf_counter() - answered
        spent = model.admission.record(
            request, request.submitted - begun, written, caller
        )
        return text, TIMING % tuple([1000 * seconds for seconds in spent])

    async def compute(
        self,
        model: Model,
        sequences: list[np.ndarray],
        states: list[bytes] | None,
        caller: Caller,
        *,
        until: float,
        keep: bool = False,
    ) -> AdmittedRequest:
        """A request whose future has the probabilities of all sequences [T, F].

        Args:
            until: when nobody waits any more, of `time.perf_counter`.

        Raises:
            ServiceError, CancelledError: as `predict`.
        """
        begun = time.perf_counter()
        admission = model.admission
        request: AdmittedRequest | None = None
        try:
            caller.reservation.resize(_held(model.metadata, sequences))
            turn = caller.id
            request = admission.submit(
                sequences, states, caller=turn, deadline=until, return_state=keep
            )
            await request.future
            if time.perf_counter() > until:
                raise DeadlineExceeded("no answer in that time")
        except BaseException:
            request = None  # else its failure would hold this frame, which holds it
            admission.statistics.record_failure(time.perf_counter() - begun)
            raise
        return request

    async def read(
        self,
        body: bytes,
        caller: Caller,
        here: Callable[P, T],
        there: Callable[P, T],
        *given: P.args,
        **more: P.kwargs,
    ) -> T:
        """What a body says: read `here` where it is small, else in another process by
        a function of a module (`there`)."""
        if len(body) <= INLINE_BYTES:
            return here(*given, **more)
        return await self._elsewhere.run(caller.id, len(body), there, *given, **more)

    def _check_room(self, body: bytes, task: str, caller: Caller, until: float) -> None:
        """That it is worth while to parse: under overload most is refused, and the
        time for it would be the workers'."""
        model = self._catalog.find(fast_json.peek_model_name(body), task)
        if model is not None:
            model.admission.check_room(until, caller.id)

    async def _read(
        self, body: bytes, task: str, caller: Caller
    ) -> tuple[Model, PredictRequest]:
        for _ in range(READS):
            features = self._catalog.features[task]
            asked = await self.read(
                body,
                caller,
                self._reader.decode_request,
                process.decode_request,
                body,
                features,
            )
            model = self._catalog.choose(asked.model, task)
            wanted = model.metadata.input.features
            if asked.sequences and asked.sequences[0].shape[1] == wanted:
                return model, asked
        raise NotReady("the model came while the request was read", headers=AGAIN)

    def _states(
        self, model: Model, asked: PredictRequest, caller: Caller
    ) -> list[State]:
        """Where the sequences go on from."""
        tokens = asked.states or [None] * len(asked.sequences)
        if asked.return_state or any(token is not None for token in tokens):
            self._catalog.check_streamable(model)
        return model.tokens.verify_all(tokens, caller.owner)

    async def _write(
        self,
        model: Model,
        answers: list[np.ndarray],
        top_k: int | None,
        members: list[dict[str, Any]],
        caller: Caller,
    ) -> bytes:
        size = NUMBER_BYTES * sum(answer.size for answer in answers)
        size += sum(len(member["state"]) for member in members)
        given = (model.metadata, answers, top_k, members)
        text = await self._elsewhere.run_if_large(
            caller.id, size, native.encode, *given
        )
        caller.reservation.resize(len(text))
        return text


def _held(metadata: Metadata, sequences: list[np.ndarray]) -> int:
    """Bytes that a request takes while it is computed: its frames, twice (here and on
    the way to a worker), and its probabilities."""
    frames = sum([sequence.nbytes for sequence in sequences])
    label = metadata.task == "label"
    rows = sum(map(len, sequences)) if label else len(sequences)
    return 2 * frames + 4 * rows * len(metadata.classes)
