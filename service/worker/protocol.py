"""Messages between the serving process and its workers.

Each transmission is a list of messages in MessagePack, behind its length in 4 bytes.
Arrays travel as their bytes, float32.
"""

import itertools
import math
import socket
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

LENGTH_BYTES = 4
READ_BYTES = 256 * 1024
# After a read of this size more data is probably there; after so many reads, what
# they brought is handled first.
LARGE_READ_BYTES, MAX_READS = 64 * 1024, 16


class LoadModel(msgspec.Struct, tag=True, array_like=True):
    """Request to load the bundle in a folder as model number `model`."""

    model: int
    folder: str
    digest: str = ""  # the bundle must have this digest; "" for any
    background: bool = False  # other models are serving requests meanwhile
    precision: str = ""  # of the weights, as another worker chose it; "" to choose it


class UnloadModel(msgspec.Struct, tag=True, array_like=True):
    """Request to drop a model: no more jobs will come for it."""

    model: int


class LoadResult(msgspec.Struct, tag=True, array_like=True):
    """The loaded model's engine, or the error why it cannot be loaded."""

    model: int
    engine: str = ""
    precision: str = ""
    reason: str = ""  # why this engine was chosen
    error: str = ""


class Job(msgspec.Struct, tag=True, array_like=True):
    """Request to compute one sequence."""

    number: int
    model: int
    steps: int
    frames: bytes  # [T, F]
    state: bytes = b""  # [S], to continue from; empty: from the beginning
    return_state: bool = False
    deadline: float = math.inf  # drop the job after it (`time.perf_counter`)
    isolated: bool = False  # compute it alone: a worker died that had it
    caller: tuple[str, int] = ("", 0)  # see `FairQueue`


class CancelJob(msgspec.Struct, tag=True, array_like=True):
    """Request to drop a job, if it is not done."""

    number: int


class IsolatedJobStarted(msgspec.Struct, tag=True, array_like=True):
    """An isolated job starts: if the worker dies next, this job is the cause."""

    number: int


class JobResult(msgspec.Struct, tag=True, array_like=True):
    """A job's answer, and when it was computed (`time.perf_counter`)."""

    number: int
    started: float
    ended: float
    probabilities: bytes  # [C] (classify) or [T, C] (label)
    state: bytes = b""  # [S] after the last step, if it was requested
    rows: int = 1  # of the engine call that computed the last step


class JobFailure(msgspec.Struct, tag=True, array_like=True):
    """A job that has no answer."""

    number: int
    reason: str
    extreme: bool = False  # the cause is extreme numbers in its frames
    dropped: bool = False  # it was cancelled, or its deadline passed


class BatchReport(msgspec.Struct, tag=True, array_like=True):
    """Size and duration of an engine call."""

    model: int
    rows: int
    steps: int  # of each row, padding included
    useful: int  # steps of all rows, without padding
    seconds: float
    settled: int  # steps that are no longer pending: computed, dropped or failed
    spent: float = 0.0  # seconds since the previous call, if jobs were waiting


ToWorker = LoadModel | UnloadModel | Job | CancelJob
FromWorker = LoadResult | JobResult | JobFailure | BatchReport | IsolatedJobStarted
T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


def encode(messages: Sequence[T]) -> bytearray:
    """Return messages as one transmission."""
    buffer = bytearray(LENGTH_BYTES)
    _encoder.encode_into(messages, buffer, LENGTH_BYTES)
    size = len(buffer) - LENGTH_BYTES
    buffer[:LENGTH_BYTES] = size.to_bytes(LENGTH_BYTES, "little")
    return buffer


class MessageDecoder:
    """Decodes a stream of bytes into lists of messages."""

    def __init__(self, message_type: object):
        self._decoder = msgspec.msgpack.Decoder(
            list[message_type]  # type: ignore[valid-type]
        )
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[list]:  # type: ignore[type-arg]
        """Yield the lists that are complete now."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) >= (body := start + LENGTH_BYTES):
            end = body + int.from_bytes(buffer[start:body], "little")
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                messages = self._decoder.decode(view[body:end])
            start = end
            yield messages
        del buffer[:start]


class Channel:
    """Blocking exchange of messages over a socket."""

    def __init__(self, sock: socket.socket, message_type: object):
        """
        Args:
            message_type: of the messages that are received.
        """
        self._socket = sock
        self._decoder = MessageDecoder(message_type)

    def send(self, messages: list) -> None:  # type: ignore[type-arg]
        self._socket.sendall(encode(messages))

    def receive(self, *, wait: bool = True) -> list:  # type: ignore[type-arg]
        """Return the messages that have arrived; without `wait` perhaps none.

        Raises:
            EOFError: the other side has closed the socket.
        """
        messages: list = []  # type: ignore[type-arg]
        for reads in itertools.count(1):
            try:
                data = self._socket.recv(READ_BYTES, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if not messages:
                    raise EOFError from error
                break
            if not data and not messages:
                raise EOFError
            messages += [m for part in self._decoder.feed(data) for m in part]
            if messages if wait else len(data) < LARGE_READ_BYTES or reads == MAX_READS:
                break
        return messages
