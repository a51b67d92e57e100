"""Streams at shutdown: they end after their current message, and can be resumed."""

import concurrent.futures
import logging
import threading
from contextlib import ExitStack, suppress

import pytest
from websockets.exceptions import ConnectionClosed

from service import server
from tests.support.servers import SECONDS, handshake, wait
from tests.support.streams import (
    KINDS,
    CountingStream,
    NdjsonStream,
    RawWebSocket,
    WebSocketStream,
    counting,
    hold_engines,
    occupied,
    release_engines,
    streams_open,
    wait_entered,
)


def stopping(folder, **settings):
    """A service that is stopped within the block."""
    return counting(folder / "bundles", grace_seconds=2 * SECONDS, **settings)


class TestShutdown:
    def test_ended(self, tmp_path, logged, caplog):
        """Every open stream ends with a token to resume from. A current message is
        answered first, new streams are refused, and the service exits."""
        with stopping(tmp_path) as service, ExitStack() as stack:
            streams = []
            for first, kind in enumerate([*KINDS.values()] * 2, 1):
                stream = stack.enter_context(kind(service.url, "model=made"))
                streams.append(CountingStream(stream, first))
                streams[-1].ask(first)
            silent = [
                stack.enter_context(kind(service.url, "model=made"))
                for kind in KINDS.values()
            ]
            hold_engines(service)
            current = []
            for counted in streams[2:]:
                message, rows = counted.message(2)
                counted.stream.send(message)
                current.append(rows)
            wait_entered(service)
            wait(lambda: service.waiting_steps() == 4, "both are with the engine")
            service.server.stop()
            for stream in silent:
                last = stream.assert_ended("stopping")
                assert (last["steps"], last["state"]) == (0, None)
            ends = [counted.stream.assert_ended("stopping") for counted in streams[:2]]
            response = service.http.post("/stream?model=made", content=b"")
            assert response.status_code == 503
            assert response.json()["type"] == "urn:unrolled:error:stopping"
            assert response.headers["retry-after"] == "1"
            release_engines(service)
            for counted, rows in zip(streams[2:], current, strict=True):
                counted.assert_right(counted.stream.receive(), rows, counted.steps)
                ends.append(counted.stream.assert_ended("stopping"))
            assert [end["steps"] for end in ends] == [1, 2, 5, 6]
            for stream in [*silent, *(counted.stream for counted in streams)]:
                assert logged(stream).ended == "stopping"
        assert {r.levelname for r in caplog.records} <= {"DEBUG", "INFO"}
        with counting(tmp_path / "bundles") as service:
            for counted, end, kind in zip(
                streams, ends, [NdjsonStream, WebSocketStream] * 2, strict=True
            ):
                with kind(service.url, "model=made") as stream:
                    CountingStream(stream, counted.first).resume(end, 3)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    def test_long_message(self, tmp_path, monkeypatch, kind):
        """A message that takes longer than streams get to end has the time of every other
        request."""
        monkeypatch.setattr(server, "STREAM_SECONDS", 0.05)
        with stopping(tmp_path) as service, ExitStack() as stack:
            stream = stack.enter_context(kind(service.url, "model=made"))
            counted = CountingStream(stream, 7)
            with occupied(service, counted, 2):
                service.server.stop()
                port = service.server.servers[0]
                wait(lambda: not port.is_serving(), "the port is closed")
            stream.assert_ended("stopping")

    @pytest.mark.slow
    def test_without_a_pause(self, tmp_path):
        """If a client sends without a pause, every message before the end is answered, and
        none after it."""

        def pump(stream, stop):
            with suppress(OSError, ConnectionClosed):  # it has ended
                while not stop.is_set():
                    stream.send({"frames": [[7]]})

        def listen(stream, steps):
            while "end" not in (answer := stream.receive()):
                steps.append(answer["steps"])
            return answer

        stop = threading.Event()
        with (
            concurrent.futures.ThreadPoolExecutor(4) as executor,
            stopping(tmp_path) as service,
            # Raw: a client library may drop what it has received when it can't send.
            handshake(service.url, "model=made") as connection,
            NdjsonStream(service.url, "model=made") as ndjson,
        ):
            streams, steps = (RawWebSocket(connection), ndjson), ([], [])
            for stream in streams:
                executor.submit(pump, stream, stop)
            try:
                ends = [
                    executor.submit(listen, *pair)
                    for pair in zip(streams, steps, strict=True)
                ]
                wait(lambda: min(map(len, steps)) > 100, "both are busy")
                service.server.stop()
                for end, answered in zip(ends, steps, strict=True):
                    last = end.result(SECONDS)
                    assert last["end"] == "stopping"
                    assert answered == list(range(1, last["steps"] + 1))
            finally:
                stop.set()

    @pytest.mark.slow
    def test_silent_clients(self, tmp_path, caplog):
        """Clients that neither close nor read do not delay the shutdown."""
        caplog.set_level(logging.ERROR)
        with stopping(tmp_path) as service:
            connections = [handshake(service.url, "model=made") for _ in range(3)]
            streams = [NdjsonStream(service.url, "model=made") for _ in range(3)]
            wait(lambda: streams_open(service, "made") == 6, "all are open")
        for connection in [*connections, *streams]:
            connection.close()
        assert caplog.records == []
