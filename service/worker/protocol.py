"""What the serving process and its workers say to each other.

Lists of messages in MessagePack, each list behind its length in 4 bytes. Arrays
travel as their bytes, float32.
"""

import itertools
import math
import socket
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

LENGTH = 4
CHUNK = 256 * 1024
MUCH = 64 * 1024  # bytes read at once, after which there may be more
MOST_CHUNKS = 16  # read before what they hold is looked at


class LoadModel(msgspec.Struct, tag=True, array_like=True):
    """LoadModel the bundle in a folder under a number."""

    model: int
    folder: str
    digest: str = ""  # that it must have
    background: bool = False  # requests are answered meanwhile


class UnloadModel(msgspec.Struct, tag=True, array_like=True):
    """Nobody will ask for a model again."""

    model: int


class LoadResult(msgspec.Struct, tag=True, array_like=True):
    """It serves, or (with `error`) never will."""

    model: int
    engine: str = ""
    precision: str = ""
    reason: str = ""
    error: str = ""


class Job(msgspec.Struct, tag=True, array_like=True):
    """A sequence to be computed."""

    number: int
    model: int
    steps: int
    frames: bytes  # [T, F]
    state: bytes = b""  # [S] to go on from; empty: it begins
    keep: bool = False  # the new state is wanted
    until: float = math.inf  # when nobody waits for it any more (seconds, monotonic)
    alone: bool = False  # a worker died that had it: no other is to share its call
    caller: tuple[str, int] = ("", 0)  # between whom turns are fair


class IsolatedJobStarted(msgspec.Struct, tag=True, array_like=True):
    """A job that is computed alone is begun: if the worker dies, it dies of this."""

    number: int


class CancelJob(msgspec.Struct, tag=True, array_like=True):
    """Nobody waits for a job any more."""

    number: int


class JobResult(msgspec.Struct, tag=True, array_like=True):
    """A job's answer, and when it was computed (seconds, monotonic clock)."""

    number: int
    begun: float
    ended: float
    probabilities: bytes  # [C] (classify) or [T, C] (label)
    state: bytes = b""  # [S] after the last step, where it is wanted
    rows: int = 1  # sequences in the engine call that ended it


class JobFailure(msgspec.Struct, tag=True, array_like=True):
    """A job without an answer."""

    number: int
    reason: str
    extreme: bool = False  # its own numbers are the reason
    dropped: bool = False  # it was cancelled, or its time was up


class BatchReport(msgspec.Struct, tag=True, array_like=True):
    """An engine call: its size, seconds, and the steps of all jobs that need no
    computing any more."""

    model: int
    rows: int
    steps: int
    useful: int
    seconds: float
    settled: int
    spent: float = 0.0  # since the last call, if jobs have waited since


ToWorker = LoadModel | UnloadModel | Job | CancelJob
FromWorker = LoadResult | JobResult | JobFailure | BatchReport | IsolatedJobStarted
T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


def encode(messages: Sequence[T]) -> bytearray:
    """Messages, ready to be sent."""
    buffer = bytearray(LENGTH)
    _encoder.encode_into(messages, buffer, LENGTH)
    buffer[:LENGTH] = (len(buffer) - LENGTH).to_bytes(LENGTH, "little")
    return buffer


class MessageDecoder:
    """Bytes as they come, to lists of messages."""

    def __init__(self, kind: object):
        self._decoder = msgspec.msgpack.Decoder(list[kind])  # type: ignore[valid-type]
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[list]:  # type: ignore[type-arg]
        """The lists that are whole now."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) >= start + LENGTH:
            size = int.from_bytes(buffer[start : start + LENGTH], "little")
            if len(buffer) < start + LENGTH + size:
                break
            with memoryview(buffer) as view:
                messages = self._decoder.decode(
                    view[start + LENGTH : start + LENGTH + size]
                )
            start += LENGTH + size
            yield messages
        del buffer[:start]


class Channel:
    """A socket between two that wait for each other's messages."""

    def __init__(self, sock: socket.socket, kind: object):
        self._socket = sock
        self._incoming = MessageDecoder(kind)

    def send(self, messages: list) -> None:  # type: ignore[type-arg]
        self._socket.sendall(encode(messages))

    def receive(self, *, wait: bool = True) -> list:  # type: ignore[type-arg]
        """The messages that are there; without `wait` perhaps none.

        Raises:
            EOFError: the other side has gone.
        """
        messages: list = []  # type: ignore[type-arg]
        for chunks in itertools.count(1):
            try:
                data = self._socket.recv(CHUNK, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if not messages:
                    raise EOFError from error
                break
            if not data and not messages:
                raise EOFError
            messages += [m for part in self._incoming.feed(data) for m in part]
            if messages if wait else len(data) < MUCH or chunks == MOST_CHUNKS:
                break
        return messages
