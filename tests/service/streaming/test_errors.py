"""Errors of a stream's messages: after each, the stream continues from where it was."""

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codecs import stream_messages
from service.codecs.process import CodecProcesses
from service.errors import InternalError
from service.settings import Settings
from service.streaming.handlers import (
    MAX_CLIENT_ERRORS,
    AsgiStreamHandler,
    SocketStreamHandler,
)
from service.streaming.stream import Stream
from service.telemetry.logs import JsonFormatter
from service.telemetry.metrics import Metrics
from tests.support.bundles import make_metadata, random_frames
from tests.support.scheduler import poisoned
from tests.support.servers import SECONDS, anonymous_caller
from tests.support.streams import (
    KINDS,
    CountingStream,
    WebSocketStream,
    numbers,
    occupied,
)

CANARY = "c4n4ry"  # input that no answer may contain


def bad(name, message, status, slug, *paths):
    return name, message, status, slug, list(paths)


def misfit(name, message, *paths):
    return bad(name, message, 422, "invalid-request", *paths)


BAD = [
    bad("word", CANARY, 400, "invalid-json"),
    bad("truncated", '{"frames": [[1]', 400, "invalid-json"),
    bad("trailing", '{"frames": [[1]]} x', 400, "invalid-json"),
    bad("nan", '{"frames": [[NaN]]}', 400, "invalid-json", "frames[0][0]"),
    bad("infinity", '{"frames": [[-Infinity]]}', 400, "invalid-json", "frames[0][0]"),
    misfit("null", "null", "message"),
    misfit("list", "[[1]]", "message"),
    misfit("number", "5", "message"),
    misfit("object", {}, "frames"),
    misfit("frames-null", {"frames": None}, "frames"),
    misfit("frames-string", {"frames": CANARY}, "frames"),
    misfit("frames-object", {"frames": {CANARY: 1}}, "frames"),
    misfit("no-step", {"frames": []}, "frames"),
    misfit("frame-number", {"frames": [1]}, "frames[0]"),
    misfit("empty-frame", {"frames": [[]]}, "frames[0]"),
    misfit("two-features", {"frames": [[1], [1, 2]]}, "frames[1]"),
    misfit("all-two-features", {"frames": [[1, 2]]}, "frames[0]"),
    misfit("cell-null", {"frames": [[1], [None]]}, "frames[1][0]"),
    misfit("cell-string", {"frames": [[CANARY]]}, "frames[0][0]"),
    misfit("cell-true", {"frames": [[True]]}, "frames[0][0]"),
    misfit("cell-list", {"frames": [[[1]]]}, "frames[0][0]"),
    misfit("1e39", '{"frames": [[1], [1e39]]}', "frames[1][0]"),
    misfit("1e999", '{"frames": [[1e999]]}', "frames[0][0]"),
    misfit("unknown-member", {"frames": [[1]], CANARY: 1}, "message"),
    misfit("sequences", {"sequences": [[[1]]]}, "message"),
    misfit("model", {"frames": [[1]], "model": "made"}, "message"),
    misfit("only-state", {"state": None}, "frames"),
    misfit("only-return-state", {"return_state": True}, "frames"),
    misfit("end-false", {"end": False}, "frames"),
    misfit("end-number", {"frames": [[1]], "end": 1}, "end"),
    misfit("return-state", {"frames": [[1]], "return_state": "yes"}, "return_state"),
    misfit("state-number", {"frames": [[1]], "state": 5}, "state"),
    misfit("nested", '{"frames": ' + "[" * 50 + "]" * 50 + "}", "frames[0][0]"),
    bad("state", {"frames": [[1]], "state": CANARY}, 422, "invalid-state", "state"),
    bad("state-empty", {"frames": [[1]], "state": ""}, 422, "invalid-state", "state"),
    bad("state-end", {"end": True, "state": CANARY}, 422, "invalid-state", "state"),
    bad("steps", {"frames": [[1]] * 21}, 413, "too-large", "frames"),
    bad("lists", {"frames": [[]] * 500}, 413, "too-large"),
    misfit("bad-and-end", {"frames": [[1, 2]], "end": True}, "frames[0]"),
    misfit("many", {"frames": [[1, 2]] * 20}, *[f"frames[{n}]" for n in range(20)]),
]


def assert_error(answer, steps, status, slug, paths=(), stream=None):
    """The answer is this error, after so many steps, without any input."""
    assert set(answer) == {"error", "steps"}
    assert answer["steps"] == steps
    problem = answer["error"]
    assert problem["status"] == status
    assert problem["type"] == f"urn:unrolled:error:{slug}"
    assert problem["title"]
    assert problem["detail"]
    assert [error["path"] for error in problem.get("errors", ())] == list(paths)
    assert problem["request_id"]
    if stream is not None:
        assert problem["request_id"] == stream.headers["x-request-id"]
    assert CANARY not in json.dumps(answer)
    return problem


class TestErrors:
    def test_messages(self, opened):
        """An invalid message gets the error of such a request, with the stream's id. The
        stream continues from where it was, also at its beginning."""
        counting = opened()
        for _, message, *problem in BAD:
            counting.stream.send(message)
            answer = counting.stream.receive()
            assert_error(answer, counting.steps, *problem, counting.stream)
            counting.ask(1)
        assert counting.stream.end()["steps"] == len(BAD)

    def test_not_utf8(self, opened):
        """The bytes of a message must be UTF-8."""
        counting = opened()
        counting.ask(1)
        counting.stream.send(b'{"frames": [[1]], "state": "\xff"}')
        assert_error(counting.stream.receive(), 1, 400, "invalid-json")
        counting.ask(1)

    def test_changed_token(self, opened):
        """A token that was changed anywhere is invalid."""
        counting = opened()
        token = counting.ask(3, return_state=True)["state"]
        for place in (0, 10, len(token) // 2, len(token) - 2):
            other = "A" if token[place] != "A" else "B"
            changed = token[:place] + other + token[place + 1 :]
            counting.stream.send({"frames": [[1]], "state": changed})
            answer = counting.stream.receive()
            assert_error(answer, 3, 422, "invalid-state", ["state"])
        counting.ask(1)

    def test_engine_fails(self, opened, caplog, monkeypatch):
        """If the engine fails, the client gets a bare 500, and the log has the cause under
        the stream's id. The stream continues from where it was."""
        counting = opened()
        counting.ask(2)
        with monkeypatch.context() as patch:
            for engine in opened.service.engines:
                patch.setattr(engine, "hook", poisoned([7]))
            counting.stream.send(counting.message(4)[0])
            answer = counting.stream.receive()
        counting.steps -= 4
        assert_error(answer, 2, 500, "internal-error", stream=counting.stream)
        assert "poison" not in json.dumps(answer)
        request_id = counting.stream.headers["x-request-id"]
        records = [
            record
            for record in caplog.records
            if getattr(record, "request_id", "") == request_id
        ]
        (record,) = (r for r in records if r.levelname == "ERROR")
        assert "poison" in JsonFormatter().format(record)
        counting.ask(4)

    @pytest.mark.parametrize("number", [5.0, 1e30])
    def test_not_finite(self, opened, number, monkeypatch):
        """A result that is not finite is the client's error if its numbers are extreme,
        otherwise the service's."""
        counting = opened(first=number if number < 100 else 7)
        counting.ask(2)
        with monkeypatch.context() as patch:
            for engine in opened.service.engines:
                patch.setattr(engine, "hook", lambda call, answer: answer * np.nan)
            counting.stream.send({"frames": [[number]]})
            answer = counting.stream.receive()
        if number > 100:
            assert_error(answer, 2, 422, "invalid-request", ["frames"])
        else:
            assert_error(answer, 2, 500, "internal-error")
        counting.ask(1)

    def test_overloaded(self, opened):
        """A message is refused while too much waits, and answered when sent again later."""
        counting, other = opened(), opened(first=3)
        counting.ask(1)
        with occupied(opened.service, other, 18):
            counting.stream.send(counting.message(5)[0])
            answer = counting.stream.receive()
            problem = assert_error(answer, 1, 503, "overloaded")
            assert "18 steps wait for made" in problem["detail"]
        counting.steps -= 5
        counting.ask(5)

    def test_not_encoded(self, running_server, monkeypatch):
        """An answer that can't be encoded leaves the state as it was."""
        run = CodecProcesses.run

        async def broken(codecs, caller, size, function, *args):
            if function is stream_messages.encode_answer:
                raise InternalError("the process has died")
            return await run(codecs, caller, size, function, *args)

        frames = random_frames(np.random.default_rng(7), 3_000)
        with WebSocketStream(running_server.url, "model=tags") as stream:
            stream.ask(frames[:1])
            with monkeypatch.context() as patch:
                patch.setattr(CodecProcesses, "run", broken)
                stream.send({"frames": frames[1:].tolist()})
                assert_error(stream.receive(), 1, 500, "internal-error")
            assert stream.ask(frames[1:])["steps"] == 3_000

    @given(
        kind=st.sampled_from([*KINDS.values()]),
        task=st.sampled_from(["classify", "label"]),
        plan=st.lists(
            st.one_of(st.integers(1, 6), st.sampled_from(BAD)),
            min_size=1,
            max_size=20,
        ),
    )
    def test_any_order(self, services, kind, task, plan):
        """Messages that are sent all at once, valid and invalid in any order, are answered
        one by one in that order."""
        with kind(services[task].url, "model=made") as stream:
            counting, awaited = CountingStream(stream, 7, task), []
            for step in plan:
                if isinstance(step, int):
                    message, rows = counting.message(step)
                    awaited.append((rows, counting.steps, None))
                else:
                    _, message, *problem = step
                    awaited.append((None, counting.steps, problem))
                stream.send(message)
            for rows, steps, problem in awaited:
                answer = stream.receive()
                if problem is None:
                    counting.assert_right(answer, rows, steps)
                else:
                    assert_error(answer, steps, *problem)
            assert stream.end()["steps"] == counting.steps

    def test_another_model(self, running_server):
        """A token of another model is refused with the reason, and the stream continues."""
        frames = random_frames(np.random.default_rng(5), 1)
        for kind in KINDS.values():
            with kind(running_server.url, "model=tags") as stream:
                token = stream.ask(frames, return_state=True)["state"]
            with kind(running_server.url, "model=walks") as stream:
                expected = numbers(stream.ask(frames))
                stream.send({"frames": frames.tolist(), "state": token})
                answer = stream.receive()
                problem = assert_error(answer, 1, 409, "state-conflict", ["state"])
                assert token[:20] not in json.dumps(problem)
                again = numbers(stream.ask(frames, state=None))
                assert again == pytest.approx(expected, abs=1e-6)


@pytest.mark.anyio
class TestPauses:
    """Errors in a row are answered with pauses, in which others are served."""

    COUNT = MAX_CLIENT_ERRORS - 1

    def stream(self):
        model = SimpleNamespace(metadata=make_metadata(), decoding=("frames", None))
        codecs = CodecProcesses(Settings())
        return Stream(model, None, "id", anonymous_caller(), codecs, Metrics())

    async def turns(self, lines):
        """The turns of the event loop until all are answered."""
        turns = 0
        async with asyncio.timeout(SECONDS):
            while len(lines) < self.COUNT:
                await asyncio.sleep(0)
                turns += 1
        return turns

    async def test_asgi(self):
        messages, lines = [b"x"] * self.COUNT, []

        async def begin():
            pass

        async def receive():
            return messages.pop() if messages else None

        async def send(line):
            lines.append(line)

        handler = AsgiStreamHandler(self.stream(), begin, receive, send)
        task = asyncio.create_task(handler.run())
        assert await self.turns(lines) > self.COUNT / 2
        assert await task == "done"

    async def test_socket(self):
        """The messages had to wait until the client read."""
        lines = []
        socket = SimpleNamespace(
            write_paused=True,
            buffered=False,
            send_text=lines.append,
            read_more=lambda: None,
        )
        handler = SocketStreamHandler(self.stream(), socket)
        for _ in range(self.COUNT):
            handler.take(b"x")
        assert lines == []
        socket.write_paused = False
        handler.resume()
        assert await self.turns(lines) > self.COUNT / 2
