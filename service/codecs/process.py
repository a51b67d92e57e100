"""Decoding and encoding off the event loop: small bodies inline, large ones in other
processes.

Parsing a megabyte takes milliseconds in which an event loop answers nobody. A thread
would not help: it holds the interpreter's lock while it parses.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from model.bundle.vocabulary import Kind
from service import os_resources
from service.callers.fair_slots import FairSlots
from service.codecs import (
    compression,
    fast_json,
    native,
    records,
    stream_messages,
    text,
    tf_serving,
)
from service.codecs.compression import Body
from service.codecs.fast_json import Inputs, PredictRequest
from service.codecs.stream_messages import StreamMessage
from service.codecs.tf_serving import InstancesRequest
from service.errors import InternalError, WrongFeatureCount
from service.os_resources import available_cores
from service.settings import Limits, Settings

MIN_PROCESSES = 2
# Below the workers' priority: parsing one client's large bodies must not take the cores
# from what the workers compute for others.
NICE = 15
INLINE_BYTES = 64 * 1024  # parsing or writing this takes less than a millisecond

ESCAPE = b"\\u"  # may be any name's letter
NOT_FRAMES = (b'"texts"', b'"tokens"', b'"records"', ESCAPE)  # one is in other bodies

P = ParamSpec("P")
T = TypeVar("T")


class RequestDecoder:
    """Decodes one body after another, in one thread: fast if it is plain, else strictly.

    Every method raises InvalidJson, InvalidRequest or TooLarge, as the codecs say.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._parser = fast_json.FastParser(limits)

    def decode_request(self, body: bytes, inputs: Inputs) -> PredictRequest:
        """Decode `/classify` or `/label`.

        Args:
            inputs: that the models take. For a name that is not there, or that takes
                another kind, the result has neither sequences nor tokens.
        """
        features = inputs.features
        lists = fast_json.count_lists(body)
        fewest = min(features.values(), default=1)
        fast_json.check_size(body, lists, fewest, self._limits)
        plain = None
        if len(body) > INLINE_BYTES and any(name in body for name in NOT_FRAMES):
            self._check_values(body, inputs)
        else:
            plain = self._parser.parse_request(body, lists)
        if plain is not None:
            width = features.get(plain.model)
            if width is None or plain.sequences[0].shape[1] == width:
                return plain
        strict = native.decode(body)
        if strict.records is not None:
            return self._records(strict, strict.records, inputs)
        if strict.sequences is None:
            return self._text(strict, inputs)
        width = features.get(strict.model)
        if width is None:
            return PredictRequest([], strict.model, strict.top_k)
        try:
            sequences = native.to_arrays(strict, width, self._limits)
        except WrongFeatureCount as error:
            error.reference = strict.model
            raise
        return PredictRequest(
            sequences,
            strict.model,
            strict.top_k,
            strict.states,
            strict.return_state,
        )

    def _check_values(self, body: bytes, inputs: Inputs) -> None:
        """Refuse a large body of text or records with too many values."""
        columns = [count for kind, count in inputs.text.values() if kind == "tokens"]
        fewest = min(columns, default=self._limits.max_cells)
        if b'"records"' in body or ESCAPE in body:
            fewest = min([fewest, *map(len, inputs.records.values())])
            records.check_size(body, fewest, self._limits)
            records.check_lengths(body, self._limits)
        else:
            text.check_size(body, fewest, self._limits)

    def _text(self, body: native.PredictBody, inputs: Inputs) -> PredictRequest:
        kind, columns = inputs.text.get(body.model, ("tokens", 0))
        tokens = text.to_tokens(body.texts, body.tokens, kind, self._limits, columns)
        native.check_options(body, len(tokens))
        return PredictRequest(
            [],
            body.model,
            body.top_k,
            body.states,
            body.return_state,
            tokens=tokens,
            texts=body.texts,
            spans=body.spans,
        )

    def _records(
        self,
        body: native.PredictBody,
        sequences: list[list[dict[str, Any]]],
        inputs: Inputs,
    ) -> PredictRequest:
        columns = inputs.records.get(body.model, {})
        records.check(sequences, max(1, len(columns)), self._limits)
        native.check_options(body, len(sequences))
        return PredictRequest(
            [],
            body.model,
            body.top_k,
            body.states,
            body.return_state,
            # Of a model that is unknown, or reads something else: none.
            records=records.choose(sequences, columns) if columns else [],
        )

    def decode_instances(
        self, body: bytes, features: int, state_size: int
    ) -> InstancesRequest:
        """Decode TensorFlow Serving's `:predict`; arguments as of `tf_serving.decode`."""
        lists = fast_json.count_lists(body)
        extra = state_size + 4  # a row may have a state, a length, and their keys
        fast_json.check_size(body, lists, features, self._limits, extra)
        plain = self._parser.parse_instances(body, lists)
        if plain is not None and plain[1] and plain[1][0].shape[1] == features:
            name, sequences = plain
            fits = len(sequences) <= self._limits.max_sequences
            if name in ("instances", "inputs") and fits:
                return InstancesRequest(sequences, by_row=name == "instances")
        return tf_serving.decode(body, features, state_size, self._limits)

    def decode_instances_of_text(
        self, body: bytes, kind: Kind, columns: int
    ) -> InstancesRequest:
        """Decode TensorFlow Serving's `:predict` to a model that reads text."""
        text.check_size(body, columns, self._limits)
        return tf_serving.decode_text(body, kind, columns, self._limits)

    def decode_instances_of_records(
        self, body: bytes, columns: records.Columns
    ) -> InstancesRequest:
        """Decode TensorFlow Serving's `:predict` to a model that reads records."""
        records.check_size(body, len(columns), self._limits)
        return tf_serving.decode_records(body, columns, self._limits)

    def decode_examples(self, body: bytes, features: int) -> InstancesRequest:
        """Decode TensorFlow Serving's `:classify` of a model with so many features."""
        lists = fast_json.count_lists(body)
        fast_json.check_size(body, lists, features, self._limits)
        return tf_serving.decode_examples(body, features, self._limits)

    def decode_message(
        self,
        message: bytes,
        features: int,
        kind: str = "frames",
        columns: records.Columns | None = None,
    ) -> StreamMessage:
        """Decode a stream's message to a model with so many features, or that reads what
        `Metadata.input.kind` says: text, or records of these columns."""
        if columns is not None:
            records.check_size(message, features, self._limits)
            decoded = stream_messages.decode(message, features, self._limits, kind)
            if decoded.records is None:
                return decoded
            (chosen,) = records.choose([decoded.records], columns, ["records"])
            return decoded._replace(records=chosen)
        if kind != "frames":
            return stream_messages.decode(message, features, self._limits, kind)
        plain = self._parser.parse_message(message)
        if plain is not None and plain[0].shape[1] == features:
            return StreamMessage(plain[0], return_state=plain[1])
        lists = fast_json.count_lists(message)
        fast_json.check_size(message, lists, features, self._limits)
        return stream_messages.decode(message, features, self._limits)


class CodecProcesses:
    """Processes for work that would block the event loop: one for each core, and two at
    least, so that one slow body doesn't hold up the others. Callers get fair shares."""

    def __init__(self, settings: Settings):
        # They parse untrusted input: they know no secret.
        self._limits = settings.limits
        self.decoder = RequestDecoder(self._limits)  # of this process
        count = max(MIN_PROCESSES, settings.workers or available_cores())
        self._processes = [self._new_process() for _ in range(count)]
        self._slots = FairSlots(range(len(self._processes)))

    async def decode(
        self,
        caller: tuple[str, int],
        method: Callable[Concatenate[RequestDecoder, bytes, P], T],
        body: Body,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call a method of `RequestDecoder`: here for a small body, else in a process.

        Raises:
            Exception: as `run`.
            BadEncoding, TooLarge: a compressed body can't be decompressed.
        """
        if isinstance(body, bytes) and len(body) <= INLINE_BYTES:
            return method(self.decoder, body, *args, **kwargs)
        size = len(body) if isinstance(body, bytes) else body.limit
        return await self.run(caller, size, decode, method, body, *args, **kwargs)  # type: ignore[arg-type]

    async def run(
        self,
        caller: tuple[str, int],
        size: int,
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a module's function in a process, and return its result.

        Args:
            caller: see `FairSlots.acquire`.
            size: of the work, in bytes of JSON.

        Raises:
            Exception: what the function raises.
            InternalError: the process died of it; another has taken its place.
        """
        index = await self._slots.acquire(caller, size)
        loop = asyncio.get_running_loop()

        def release(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._slots.release, index)

        try:
            future = self._submit(index, partial(function, *args, **kwargs))
        except BaseException:
            self._slots.release(index)
            raise
        # Even if the caller stops waiting, the process is busy until then.
        future.add_done_callback(release)
        result = asyncio.wrap_future(future)
        del future
        try:
            return await result
        except BrokenProcessPool as error:
            raise InternalError("the body could not be processed") from error
        finally:
            del result  # an exception in it would refer to this frame: a cycle

    async def run_if_large(
        self,
        caller: tuple[str, int],
        size: int,
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """The same, but call the function here if so few bytes take no time."""
        if size <= INLINE_BYTES:
            return function(*args, **kwargs)
        return await self.run(caller, size, function, *args, **kwargs)

    def start(self) -> None:
        """Start the processes, without waiting for them."""
        for process in self._processes:
            process.submit(int)

    def close(self) -> None:
        """End the processes. It blocks: call it outside the event loop."""
        for process in self._processes:
            process.shutdown(cancel_futures=True)

    def _submit(self, index: int, work: Callable[[], T]) -> "Future[T]":
        try:
            return self._processes[index].submit(work)
        except BrokenProcessPool:  # it died during the last work, or since
            self._processes[index] = self._new_process()
            return self._processes[index].submit(work)

    def _new_process(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("forkserver"),
            initializer=_initialize,
            initargs=(self._limits,),
        )


_decoder: RequestDecoder  # of a codec process


def decode(method: Callable[..., T], body: Body, *args: Any, **kwargs: Any) -> T:
    """Call a method of `RequestDecoder` in a codec process."""
    return method(_decoder, compression.whole(body), *args, **kwargs)


def _initialize(limits: Limits) -> None:
    global _decoder
    os_resources.configure_allocator()
    with contextlib.suppress(AttributeError, OSError):  # not on this system
        os.nice(NICE)
    _decoder = RequestDecoder(limits)
    for number in (signal.SIGINT, signal.SIGTERM):
        # All processes get the signal, but the serving process decides when to end.
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
