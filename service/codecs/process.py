"""Requests' bodies to arrays: small ones at once, large ones in other processes.

To parse a body of a megabyte takes milliseconds, in which an event loop could answer
nobody; nor could it while another thread of its interpreter parses.
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
from typing import ParamSpec, TypeVar

from service import os_resources
from service.callers.fair_slots import FairSlots
from service.codecs import fast_json, native, stream_messages, tf_serving
from service.codecs.fast_json import PredictRequest
from service.codecs.native import DIGITS as DIGITS
from service.codecs.stream_messages import Sent
from service.codecs.tf_serving import Instances
from service.errors import InternalError
from service.os_resources import available_cores
from service.settings import Settings

LEAST_PROCESSES = 2
# After the workers: else the parsing of one caller's large bodies would take the cores
# from what they compute for others.
NICE = 15
INLINE_BYTES = 64 * 1024  # parsing or writing this takes less than a millisecond

P = ParamSpec("P")
T = TypeVar("T")


class Reader:
    """Reads bodies one after another, in one thread."""

    def __init__(self, settings: Settings):
        self._settings, self._most = settings, settings.max_sequences
        self._limits = settings.limits
        self._parser = fast_json.Parser(settings)

    def read(self, body: bytes, features: dict[str | None, int]) -> PredictRequest:
        """What is asked of a model, or of one that is not in `features`.

        Args:
            features: how many the models take; under None the default's.

        Raises:
            InvalidJson, InvalidRequest, TooLarge: as `codec` has it.
        """
        lists = fast_json.lists(body)
        fewest = min(features.values(), default=1)
        fast_json.check_size(body, lists, fewest, self._limits)
        asked = self._parser.read(body, lists)
        if asked is not None:
            width = features.get(asked.model)
            if width is None or asked.sequences[0].shape[1] == width:
                return asked
        given = native.decode(body)
        width = features.get(given.model)
        if width is None:
            return PredictRequest([], given.model, given.top_k)
        sequences = native.arrays(given, width, self._settings)
        wanted = (given.states, given.return_state)
        return PredictRequest(sequences, given.model, given.top_k, *wanted)

    def read_instances(self, body: bytes, features: int, state_size: int) -> Instances:
        """What TensorFlow Serving's `:predict` is asked of a model.

        Raises:
            InvalidJson, InvalidRequest, TooLarge: as `instances` has it.
        """
        lists = fast_json.lists(body)
        others = state_size + 4  # a row may have a state, a length, and their names
        fast_json.check_size(body, lists, features, self._limits, others)
        plain = self._parser.rows(body, lists)
        if plain is not None and plain[1] and plain[1][0].shape[1] == features:
            name, sequences = plain
            if name in ("instances", "inputs") and len(sequences) <= self._most:
                return Instances(sequences, name == "instances")
        return tf_serving.decode(body, features, state_size, self._settings)

    def read_message(self, message: bytes, features: int) -> Sent:
        """What a stream's message says to a model of so many features.

        Raises:
            InvalidJson, InvalidRequest, TooLarge: as `codec` has it.
        """
        plain = self._parser.frames(message)
        if plain is not None and plain[0].shape[1] == features:
            return Sent(plain[0], return_state=plain[1])
        fast_json.check_size(message, fast_json.lists(message), features, self._limits)
        return stream_messages.decode(message, features, self._settings)


class CodecProcesses:
    """Processes for what would hold up the event loop: one a core, two at least, so that
    a body which takes long to refuse doesn't hold up others' bodies. Callers get fair
    turns."""

    def __init__(self, settings: Settings):
        # They parse what strangers send: no secret is there.
        self._settings = settings.without_secrets()
        count = max(LEAST_PROCESSES, settings.workers or available_cores())
        self._processes = [self._made() for _ in range(count)]
        self._slots = FairSlots(range(len(self._processes)))

    async def run(
        self,
        caller: tuple[str, int],
        size: int,
        work: Callable[P, T],
        *given: P.args,
        **more: P.kwargs,
    ) -> T:
        """Returns what `work` returns; it must be a function of a module.

        Args:
            caller: as `FairSlots.acquire`.
            size: of the work, in bytes of JSON.

        Raises:
            Exception: what `work` raises.
            InternalError: the process died of it; there is another.
        """
        place = await self._slots.acquire(caller, size)
        loop = asyncio.get_running_loop()

        def free(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._slots.release, place)

        try:
            future = self._submit(place, partial(work, *given, **more))
        except BaseException:
            self._slots.release(place)
            raise
        # Not when the caller stops waiting: the process is at work until then.
        future.add_done_callback(free)
        answer = asyncio.wrap_future(future)
        del future
        try:
            return await answer
        except BrokenProcessPool as error:
            raise InternalError("the body could not be worked on") from error
        finally:
            del answer  # else what it raises would hold this frame, which holds it

    async def run_if_large(
        self,
        caller: tuple[str, int],
        size: int,
        work: Callable[P, T],
        *given: P.args,
        **more: P.kwargs,
    ) -> T:
        """The same; at once and here, where so many bytes take no time.

        Raises:
            Exception: as `run`.
        """
        if size <= INLINE_BYTES:
            return work(*given, **more)
        return await self.run(caller, size, work, *given, **more)

    def start(self) -> None:
        """Start the processes, without waiting for them."""
        for process in self._processes:
            process.submit(int)

    def close(self) -> None:
        """End them; not on the event loop."""
        for process in self._processes:
            process.shutdown(cancel_futures=True)

    def _submit(self, place: int, work: Callable[[], T]) -> "Future[T]":
        try:
            return self._processes[place].submit(work)
        except BrokenProcessPool:  # it died of the last one, or since
            self._processes[place] = self._made()
            return self._processes[place].submit(work)

    def _made(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("forkserver"),
            initializer=_begin,
            initargs=(self._settings,),
        )


_reader: Reader


def _begin(settings: Settings) -> None:
    global _reader
    os_resources.configure_allocator()
    with contextlib.suppress(AttributeError, OSError):  # not on this system
        os.nice(NICE)
    _reader = Reader(settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # told to all; that one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def read_message(message: bytes, features: int) -> Sent:
    """`Reader.read_message` in the other process."""
    return _reader.read_message(message, features)


def read_instances(body: bytes, features: int, state_size: int) -> Instances:
    """`Reader.read_instances` in the other process."""
    return _reader.read_instances(body, features, state_size)


def read(body: bytes, features: dict[str | None, int]) -> PredictRequest:
    """`Reader.read` in the other process."""
    return _reader.read(body, features)
