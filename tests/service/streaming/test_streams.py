"""Streams over a real socket: the answers, what is refused, how they end, what is told
of them; over both transports."""

import asyncio
import concurrent.futures
import json
import logging
import os
import signal
import threading
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from service import server
from service.codecs import process, stream_messages
from service.codecs.process import CodecProcesses
from service.errors import InternalError
from service.pool import pool, spawn
from service.settings import Settings
from service.streaming.handlers import (
    MAX_CLIENT_ERRORS,
    AsgiStreamHandler,
    SocketStreamHandler,
)
from service.streaming.stream import Stream
from service.telemetry.logs import JsonFormatter
from service.telemetry.metrics import Metrics
from service.worker.engine import ENGINES
from tests.support.bundles import copy_bundle, make_metadata, random_frames
from tests.support.scheduler import poisoned
from tests.support.servers import SECONDS, anonymous_caller, running, value, wait
from tests.support.streams import (
    KEY,
    TEXT,
    TRANSPORTS,
    CountingStream,
    NdjsonStream,
    RawWebSocket,
    WebSocketStream,
    chunked,
    counting,
    frame,
    handshake,
    hold_engines,
    numbers,
    open_connection,
    release_engines,
    reset_connection,
    streams_open,
    wait_closed,
    wait_entered,
)

TASKS = {"walks": "classify", "tags": "label"}
CLASSES = {"walks": ["run", "sit", "stand", "wälk"], "tags": ["noun", "verb", "other"]}
CLOSE = {"rtol": 0, "atol": 1e-5}
CANARY = "c4n4ry"
NUMBER = 73910.4242


@pytest.fixture(scope="module", params=["onnx", "tensorflow"])
def service(request, bundles):
    """The service with either engine, in workers that are threads."""
    own = Settings(port=0, bundles=bundles, engine=request.param, state_key=KEY)
    with running(own, start=spawn.thread(ENGINES)) as made:
        described = made.http.get("/models").json()["models"]
        assert {model["engine"] for model in described} == {request.param}
        yield made


@pytest.fixture(scope="module")
def truth(bundles):
    """Model, frames -> the answer of its SavedModel after each step [T, C], computed
    alone and at once."""
    import tensorflow as tf

    loaded = {name: tf.saved_model.load(str(bundles / name / "1")) for name in TASKS}

    def alone(name, frames):
        # Of a classifier all beginnings of the sequence, as one batch.
        count = len(frames) if TASKS[name] == "classify" else 1
        lengths = range(1, count + 1) if count > 1 else [len(frames)]
        outputs = loaded[name].signatures["serving_default"](
            frames=tf.constant(np.repeat(frames[None], count, 0)),
            lengths=tf.constant(lengths, tf.int32),
        )
        probabilities = outputs["probabilities"].numpy()
        return probabilities if TASKS[name] == "classify" else probabilities[0]

    return alone


def assert_says(name, answer, rows, steps):
    """An answer says, in all of its members, what the network says after each of the
    message's steps [t, C], when so many steps have been taken in all."""
    labels = [CLASSES[name][best] for best in rows.argmax(1)]
    state = {"state"} & set(answer)
    assert answer["steps"] == steps
    if TASKS[name] == "label":
        assert set(answer) == {"steps", "labels", "probabilities"} | state
        np.testing.assert_allclose(numbers(answer), rows, strict=True, **CLOSE)
        assert answer["labels"] == labels
    else:
        members = {"steps", "label", "probability", "probabilities"}
        assert set(answer) == members | state
        np.testing.assert_allclose(numbers(answer), rows[-1], strict=True, **CLOSE)
        assert answer["label"] == labels[-1]
        assert answer["probability"] == pytest.approx(rows[-1].max(), abs=1e-5)


def post(service, name, frames, token):
    """The prediction of an ordinary request that goes on from a token."""
    body = {
        "model": name,
        "sequences": [frames.tolist()],
        "states": [token],
        "return_state": True,
    }
    response = service.http.post(f"/{TASKS[name]}", json=body)
    assert response.status_code == 200, response.text
    return response.json()["predictions"][0]


class TestAnswers:
    @pytest.mark.parametrize("name", TASKS)
    @settings(max_examples=30)
    @given(
        hops=st.lists(
            st.tuples(
                st.sampled_from(["web", "lines", "post"]),
                st.lists(st.integers(1, 9), min_size=1, max_size=4),
            ),
            min_size=1,
            max_size=4,
        ),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_cuts(self, service, truth, name, hops, seed):
        """However a sequence is cut into messages, and whatever streams and ordinary
        requests it goes through by its tokens, its answers are those of the whole."""
        total = sum(sum(lengths) for _, lengths in hops)
        frames = random_frames(np.random.default_rng(seed), total)
        rows, at, token = truth(name, frames), 0, None
        for way, lengths in hops:
            parts = [
                (at + sum(lengths[:n]), length) for n, length in enumerate(lengths)
            ]
            if way == "post":
                for begin, length in parts:
                    part = slice(begin, begin + length)
                    answer = post(service, name, frames[part], token)
                    assert_says(name, answer, rows[part], part.stop)
                    token = answer["state"]
            else:
                kind = {"web": WebSocketStream, "lines": NdjsonStream}[way]
                with kind(service.url, f"model={name}") as talk:
                    state = {} if token is None else {"state": token}
                    for begin, length in parts:
                        part = slice(begin, begin + length)
                        answer = talk.ask(frames[part], **state)
                        assert_says(name, answer, rows[part], part.stop)
                        state = {}
                    last = talk.end()
                assert last["steps"] == part.stop
                token = last["state"]
            at = part.stop

    @pytest.mark.parametrize("name", TASKS)
    def test_among_others(self, service, truth, name):
        """Streams that are open at the same time, among ordinary requests, change
        nothing for each other."""
        lengths = {"stream": [1, 7, 2, 30, 1, 1, 12, 3], "request": [5, 90, 40, 1]}
        start = threading.Barrier(10)

        def streamed(number):
            frames = random_frames(
                np.random.default_rng(number), sum(lengths["stream"])
            )
            kind = (WebSocketStream, NdjsonStream)[number % 2]
            with kind(service.url, f"model={name}") as talk:
                start.wait(SECONDS)
                at, told = 0, []
                for length in lengths["stream"]:
                    told.append((talk.ask(frames[at : at + length]), length))
                    at += length
            return frames, told

        def asked(number):
            generator = np.random.default_rng(100 + number)
            some = [random_frames(generator, length) for length in lengths["request"]]
            body = {"model": name, "sequences": [frames.tolist() for frames in some]}
            start.wait(SECONDS)
            told = []
            for _ in range(5):
                response = service.http.post(f"/{TASKS[name]}", json=body)
                told.append(response.json()["predictions"])
            return some, told

        with concurrent.futures.ThreadPoolExecutor(10) as together:
            streams = [together.submit(streamed, number) for number in range(6)]
            requests = [together.submit(asked, number) for number in range(4)]
        for stream in streams:
            frames, told = stream.result()
            rows, at = truth(name, frames), 0
            for answer, length in told:
                assert_says(name, answer, rows[at : at + length], at + length)
                at += length
        for request in requests:
            some, told = request.result()
            for predictions in told:
                for frames, prediction in zip(some, predictions, strict=True):
                    rows = truth(name, frames)
                    right = rows if TASKS[name] == "label" else rows[-1]
                    np.testing.assert_allclose(numbers(prediction), right, **CLOSE)

    @pytest.mark.parametrize("kind", TRANSPORTS)
    @pytest.mark.parametrize("name", TASKS)
    def test_begins_again(self, service, truth, kind, name):
        """`"state": null` begins again, and a token goes on where it was made, at any
        time in the same stream."""
        frames = random_frames(np.random.default_rng(1), 6)
        rows = truth(name, frames)
        with kind(service.url, f"model={name}") as talk:
            token = talk.ask(frames[:4], return_state=True)["state"]
            talk.ask(frames)
            answer = talk.ask(frames[:2], state=None)
            assert_says(name, answer, rows[:2], 2)
            assert_says(name, talk.ask(frames[2:3]), rows[2:3], 3)
            assert_says(name, talk.ask(frames[4:], state=token), rows[4:], 6)

    @pytest.mark.parametrize("kind", TRANSPORTS)
    @pytest.mark.parametrize("name", TASKS)
    def test_state_on_demand(self, service, kind, name):
        """A token comes only with the answers that were asked for one."""
        frames = random_frames(np.random.default_rng(2), 1)
        with kind(service.url, f"model={name}") as talk:
            wanted = [None, True, False, True, None]
            for want in wanted:
                members = {} if want is None else {"return_state": want}
                answer = talk.ask(frames, **members)
                assert ("state" in answer) is bool(want)

    @pytest.mark.parametrize("kind", TRANSPORTS)
    @pytest.mark.parametrize("name", TASKS)
    def test_top_k(self, service, kind, name):
        """`top_k` gives the likeliest classes in place of the probabilities, as in an
        ordinary request; more than there are gives all."""
        frames = random_frames(np.random.default_rng(3), 5)
        for k in (1, 2, 999_999_999):
            body = {"model": name, "sequences": [frames.tolist()], "top_k": k}
            response = service.http.post(f"/{TASKS[name]}", json=body)
            (expected,) = response.json()["predictions"]
            with kind(service.url, f"model={name}&top_k={k}") as talk:
                answer = talk.ask(frames)
            assert set(answer) == set(expected) | {"steps"}
            steps = answer["top"] if TASKS[name] == "label" else [answer["top"]]
            right = expected["top"] if TASKS[name] == "label" else [expected["top"]]
            assert [len(step) for step in steps] == [len(step) for step in right]
            for some, others in zip(steps, right, strict=True):
                for one, other in zip(some, others, strict=True):
                    assert one["label"] == other["label"]
                    assert one["probability"] == pytest.approx(
                        other["probability"], abs=1e-5
                    )

    @pytest.mark.parametrize("kind", TRANSPORTS)
    @pytest.mark.parametrize("name", TASKS)
    def test_large(self, service, truth, kind, name):
        """A message as long as allowed, which others would have to wait for, is
        answered as a short one."""
        frames = random_frames(np.random.default_rng(4), 9_000)
        expected = post(service, name, frames, None)
        with kind(service.url, f"model={name}") as talk:
            talk.ask(frames[:1])
            answer = talk.ask(frames[1:])
            assert answer["steps"] == 9_000
            right = numbers(expected)
            right = right[1:] if TASKS[name] == "label" else right
            np.testing.assert_allclose(numbers(answer), right, **CLOSE)
            talk.send({"frames": [[1, 2, "3"]] * 10_000})
            assert talk.receive()["error"]["errors"][0]["path"] == "frames[0][2]"
            assert talk.end()["steps"] == 9_000


# --- errors in a stream ----------------------------------------------------------

LIMITS = {"max_steps": 20, "max_cells": 60, "queue_steps": 20}


@pytest.fixture(scope="module", params=list(TASKS.values()))
def counted(request, tmp_path_factory):
    """The service with an engine that counts."""
    folder = tmp_path_factory.mktemp("counted") / request.param
    with counting(folder, request.param, **LIMITS) as made:
        yield made


@pytest.fixture
def opened(counted):
    """Opens a stream to it of that first value: a transport's kind -> `CountingStream`."""
    with ExitStack() as stack:

        def open_one(kind, first=7):
            talk = stack.enter_context(kind(counted.url, "model=made"))
            return CountingStream(talk, first, counted.task)

        yield open_one
        release_engines(counted)
    wait_closed(counted, "made")


def bad(id, message, status, slug, *paths):
    return pytest.param((message, status, slug, list(paths)), id=id)


def misfit(id, message, *paths):
    return bad(id, message, 422, "invalid-request", *paths)


BAD = [
    bad("word", CANARY, 400, "invalid-json"),
    bad("truncated", '{"frames": [[1]', 400, "invalid-json"),
    bad("trailing", '{"frames": [[1]]} x', 400, "invalid-json"),
    bad("nan", '{"frames": [[NaN]]}', 400, "invalid-json"),
    bad("infinity", '{"frames": [[-Infinity]]}', 400, "invalid-json"),
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


def assert_error(told, steps, status, slug, paths=(), talk=None):
    """It is the refusal of a message, after so many steps; without what was sent."""
    assert set(told) == {"error", "steps"}
    assert told["steps"] == steps
    problem = told["error"]
    assert problem["status"] == status
    assert problem["type"] == f"urn:unrolled:error:{slug}"
    assert problem["title"]
    assert problem["detail"]
    assert [fault["path"] for fault in problem.get("errors", ())] == list(paths)
    assert problem["request_id"]
    if talk is not None:
        assert problem["request_id"] == talk.headers["x-request-id"]
    assert CANARY not in json.dumps(told)
    return problem


@pytest.mark.parametrize("kind", TRANSPORTS)
class TestErrors:
    @pytest.mark.parametrize("case", BAD)
    def test_message(self, opened, kind, case):
        """A message at fault is refused as an ordinary request would be, with the
        stream's id; the stream goes on from where it was, also at its beginning."""
        message, status, slug, paths = case
        stream = opened(kind)
        for length in (2, 1):
            stream.talk.send(message)
            told = stream.talk.receive()
            assert_error(told, stream.steps, status, slug, paths, stream.talk)
            stream.ask(length)
        assert stream.talk.end()["steps"] == 3

    def test_not_unicode(self, opened, kind):
        """So is one whose bytes are no text."""
        stream = opened(kind)
        stream.ask(1)
        stream.talk.send(b'{"frames": [[1]], "state": "\xff"}')
        assert_error(stream.talk.receive(), 1, 400, "invalid-json")
        stream.ask(1)

    def test_changed_token(self, opened, kind):
        """A token that was changed in any part is none, and changes nothing."""
        stream = opened(kind)
        token = stream.ask(3, return_state=True)["state"]
        for place in (0, 10, len(token) // 2, len(token) - 2):
            other = "A" if token[place] != "A" else "B"
            changed = token[:place] + other + token[place + 1 :]
            stream.talk.send({"frames": [[1]], "state": changed})
            assert_error(stream.talk.receive(), 3, 422, "invalid-state", ["state"])
        stream.ask(1)

    def test_fails(self, opened, counted, kind, caplog):
        """Where the engine fails the caller gets a bare 500, the log has the cause
        under the stream's id, and the stream goes on from where it was."""
        stream = opened(kind)
        stream.ask(2)
        for engine in counted.engines:
            engine.hook = poisoned([7])
        try:
            stream.talk.send(stream.message(4)[0])
            told = stream.talk.receive()
        finally:
            for engine in counted.engines:
                engine.hook = lambda call, answer: None
        stream.steps -= 4
        assert_error(told, 2, 500, "internal-error", talk=stream.talk)
        assert "poison" not in json.dumps(told)
        own = stream.talk.headers["x-request-id"]
        records = [r for r in caplog.records if getattr(r, "request_id", "") == own]
        (record,) = (r for r in records if r.levelname == "ERROR")
        assert "poison" in JsonFormatter().format(record)
        stream.ask(4)

    @pytest.mark.parametrize("number", [5.0, 1e30])
    def test_no_finite_answer(self, opened, counted, kind, number):
        """An answer that is not finite is told as the caller's doing where its
        numbers are extreme, else as ours; the state stands."""
        stream = opened(kind, first=number if number < 100 else 7)
        stream.ask(2)

        def spoilt(call, answer):
            return answer * np.nan

        for engine in counted.engines:
            engine.hook = spoilt
        try:
            stream.talk.send({"frames": [[number]]})
            told = stream.talk.receive()
        finally:
            for engine in counted.engines:
                engine.hook = lambda call, answer: None
        if number > 100:
            assert_error(told, 2, 422, "invalid-request", ["frames"])
        else:
            assert_error(told, 2, 500, "internal-error")
        stream.ask(1)

    def test_overloaded(self, opened, counted, kind):
        """A message that comes when too much waits is refused, and taken when it is
        sent again later."""
        stream, other = opened(kind), opened(kind, first=3)
        stream.ask(1)
        hold_engines(counted)
        message, rows = other.message(18)
        other.talk.send(message)
        wait_entered(counted)
        stream.talk.send(stream.message(5)[0])
        problem = assert_error(stream.talk.receive(), 1, 503, "overloaded")
        assert "18 steps wait for made" in problem["detail"]
        stream.steps -= 5
        release_engines(counted)
        other.assert_right(other.talk.receive(), rows, 18)
        stream.ask(5)

    def test_not_written(self, running_server, kind, monkeypatch):
        """An answer that can't be written leaves the state as it was, too."""
        run = process.CodecProcesses.run

        async def broken(elsewhere, caller, size, work, *given):
            if work is stream_messages.encode_answer:
                raise InternalError("the process has died")
            return await run(elsewhere, caller, size, work, *given)

        frames = random_frames(np.random.default_rng(7), 3_000)
        with kind(running_server.url, "model=tags") as talk:
            talk.ask(frames[:1])
            with monkeypatch.context() as patch:
                patch.setattr(process.CodecProcesses, "run", broken)
                talk.send({"frames": frames[1:].tolist()})
                assert_error(talk.receive(), 1, 500, "internal-error")
            assert talk.ask(frames[1:])["steps"] == 3_000

    @settings(max_examples=25)
    @given(
        plan=st.lists(
            st.one_of(st.integers(1, 6), st.sampled_from(BAD).map(lambda p: p.values)),
            min_size=1,
            max_size=20,
        )
    )
    def test_any_order(self, counted, kind, plan):
        """Messages that come all at once, good ones and others in any order, are
        answered one by one in that order."""
        with kind(counted.url, "model=made") as talk:
            stream, awaited = CountingStream(talk, 7, counted.task), []
            for step in plan:
                if isinstance(step, int):
                    message, rows = stream.message(step)
                    awaited.append((rows, stream.steps, None))
                else:
                    message, *problem = step[0]
                    awaited.append((None, stream.steps, problem))
                talk.send(message)
            for rows, steps, problem in awaited:
                told = talk.receive()
                if problem is None:
                    stream.assert_right(told, rows, steps)
                else:
                    assert_error(told, steps, *problem)
            assert talk.end()["steps"] == stream.steps


@pytest.mark.anyio
class TestHoldsUpNobody:
    """Messages at fault that come all at once are answered between what is done for
    others, not before."""

    COUNT = MAX_CLIENT_ERRORS - 1

    def stream(self):
        model = SimpleNamespace(metadata=make_metadata())
        return Stream(
            model,
            None,
            "id",
            anonymous_caller(),
            CodecProcesses(Settings()),
            Metrics(),
        )

    async def turns(self, told):
        """The turns of the loop until all are answered."""
        turns = 0
        async with asyncio.timeout(SECONDS):
            while len(told) < self.COUNT:
                await asyncio.sleep(0)
                turns += 1
        return turns

    async def test_over_asgi(self):
        """Over ASGI, as lines are."""
        messages, told = [b"x"] * self.COUNT, []

        async def begin():
            pass

        async def following():
            return messages.pop() if messages else None

        async def tell(line):
            told.append(line)

        talk = AsgiStreamHandler(self.stream(), begin, following, tell)
        talking = asyncio.create_task(talk.run())
        assert await self.turns(told) > self.COUNT / 2
        assert await talking == "done"

    async def test_past_asgi(self):
        """Past it, as those of a WebSocket are that had to wait."""
        told = []
        socket = SimpleNamespace(
            write_paused=True,
            buffered=False,
            send_text=told.append,
            read_more=lambda: None,
        )
        talk = SocketStreamHandler(self.stream(), socket)
        for _ in range(self.COUNT):
            talk.take(b"x")
        assert told == []
        socket.write_paused = False
        talk.resume()
        assert await self.turns(told) > self.COUNT / 2


@pytest.mark.parametrize("kind", TRANSPORTS)
class TestFaulty:
    def test_told(self, opened, counted, kind, logged):
        """A caller that sends nothing but faults is told that it ends, with a token
        of where it was."""
        stream = opened(kind)
        stream.ask(2)
        for _ in range(MAX_CLIENT_ERRORS):
            stream.talk.send("x")
        for _ in range(MAX_CLIENT_ERRORS):
            assert stream.talk.receive()["error"]["status"] == 400
        last = stream.talk.assert_ended("faulty")
        assert last["steps"] == 2
        wait_closed(counted, "made")
        assert logged(stream.talk).ended == "faulty"
        later = opened(kind)
        later.steps = 2
        later.ask(1, state=last["state"])

    def test_in_a_row(self, opened, kind):
        """Faults with good messages between them are borne for ever."""
        stream = opened(kind)
        for _ in range(3):
            for _ in range(MAX_CLIENT_ERRORS - 1):
                stream.talk.send({})
            for _ in range(MAX_CLIENT_ERRORS - 1):
                assert stream.talk.receive()["error"]["status"] == 422
            stream.ask(1)

    def test_ours(self, opened, counted, kind):
        """What is the service's fault is none of the caller's."""
        stream, other = opened(kind), opened(kind, first=3)
        hold_engines(counted)
        message, rows = other.message(20)
        other.talk.send(message)
        wait_entered(counted)
        for _ in range(MAX_CLIENT_ERRORS + 1):
            stream.talk.send({"frames": [[1]]})
            assert stream.talk.receive()["error"]["status"] == 503
        release_engines(counted)
        other.assert_right(other.talk.receive(), rows, 20)
        stream.ask(1)


@pytest.mark.parametrize("kind", TRANSPORTS)
class TestOtherStates:
    @pytest.mark.parametrize(
        ("state", "status", "slug"),
        [
            pytest.param("tags", 409, "state-conflict", id="another-model"),
            pytest.param("key", 422, "invalid-state", id="another-key"),
            pytest.param("version", 409, "state-conflict", id="another-version"),
        ],
    )
    def test_refused(
        self, running_server, bundles, kind, tmp_path, state, status, slug
    ):
        """A token of another model, version or key is refused, and told why; the
        stream goes on."""
        frames = random_frames(np.random.default_rng(5), 1)
        own = Settings(port=0, bundles=tmp_path, state_key=KEY)
        copy_bundle(bundles / "walks" / "1", tmp_path / "walks" / "1")
        version = {"version": "2"} if state == "version" else {}
        with ExitStack() as stack:
            if state == "tags":
                other, asked = running_server, running_server
            elif state == "key":
                other = running_server
                asked = stack.enter_context(running(own, start=spawn.thread(ENGINES)))
            else:
                old = stack.enter_context(running(own, start=spawn.thread(ENGINES)))
                folder = tmp_path / "other" / "walks" / "2"
                copy_bundle(bundles / "walks" / "1", folder, **version)
                new = own.model_copy(update={"bundles": tmp_path / "other"})
                asked = stack.enter_context(running(new, start=spawn.thread(ENGINES)))
                other = old
            name = "tags" if state == "tags" else "walks"
            with kind(other.url, f"model={name}") as talk:
                token = talk.ask(frames, return_state=True)["state"]
            with kind(asked.url, "model=walks") as talk:
                expected = talk.ask(frames)
                talk.send({"frames": frames.tolist(), "state": token})
                problem = assert_error(talk.receive(), 1, status, slug, ["state"])
                assert token[:20] not in json.dumps(problem)
                again = talk.ask(frames, state=None)
                assert numbers(again) == pytest.approx(numbers(expected), abs=1e-6)

    def test_worker_dies(self, bundles, kind, monkeypatch):
        """A stream outlives the process that computes for it: the message that was
        under way is answered by another, and the next goes on from there."""
        monkeypatch.setattr(pool, "RESTART_SECONDS", 0.01)
        processes = []

        def start(settings):
            launched = spawn.process(settings)
            processes.append(launched.wait.__self__)
            return launched

        frames = random_frames(np.random.default_rng(6), 8)
        own = Settings(port=0, bundles=bundles / "tags", workers=1)
        with running(own, start=start) as service, ExitStack() as stack:
            talk = stack.enter_context(kind(service.url, "model=tags"))
            whole = numbers(talk.ask(frames))
            talk.ask(frames[:3], state=None)
            os.kill(processes[0].pid, signal.SIGSTOP)
            talk.send({"frames": frames[3:5].tolist()})

            def waiting():
                exposition = service.metrics()
                name = "unrolled_waiting_steps"
                return value(exposition, name, model="tags") == 2

            wait(waiting, "it is with the worker")
            os.kill(processes[0].pid, signal.SIGKILL)
            told = talk.receive()
            np.testing.assert_allclose(numbers(told), whole[3:5], **CLOSE)
            told = talk.ask(frames[5:])
            np.testing.assert_allclose(numbers(told), whole[5:], **CLOSE)


# --- how they end ----------------------------------------------------------------


@pytest.fixture
def logged(caplog):
    """The log's one record of a stream that has ended: its talk, or id -> record."""
    caplog.set_level(logging.INFO, "service.request")

    def find(talk):
        own = talk if isinstance(talk, str) else talk.headers["x-request-id"]

        def found():
            records = [r for r in caplog.records if r.name == "service.request"]
            return [record for record in records if record.request_id == own]

        wait(found, "it is logged")
        (record,) = found()
        return record

    return find


class TestEnds:
    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_said(self, opened, counted, kind, logged):
        """`"end"` ends it with the number of steps and a token that goes on."""
        stream = opened(kind)
        stream.ask(5)
        last = stream.talk.end()
        assert last["steps"] == 5
        wait_closed(counted, "made")
        later = opened(kind)
        later.steps = 5
        later.ask(2, state=last["state"])
        assert logged(stream.talk).ended == "done"

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_with_frames(self, opened, kind):
        """With frames it ends after their answer."""
        stream = opened(kind)
        stream.ask(2)
        stream.ask(3, end=True, return_state=True)
        assert stream.talk.assert_ended("done")["steps"] == 5

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_at_once(self, opened, kind):
        """A stream in which nothing was sent ends with no steps, and no token."""
        last = opened(kind).talk.end()
        assert last == {"end": "done", "steps": 0, "state": None}

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_with_a_token(self, opened, kind):
        """An end may bring a token of its own, or begin again."""
        stream = opened(kind)
        token = stream.ask(4, return_state=True)["state"]
        other = opened(kind, first=9)
        other.ask(1)
        other.talk.send({"end": True, "state": token})
        assert other.talk.assert_ended("done")["steps"] == 4
        stream.talk.send({"end": True, "state": None})
        last = stream.talk.assert_ended("done")
        assert (last["steps"], last["state"]) == (0, None)

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_nothing_after(self, opened, counted, kind):
        """What comes after the end is not computed."""
        stream = opened(kind)
        hold_engines(counted)
        before = len(counted.engines[0].calls)
        stream.talk.send(stream.message(1)[0])
        wait_entered(counted)
        stream.talk.send({"end": True})
        stream.talk.send({"frames": [[9]]})
        release_engines(counted)
        assert stream.talk.receive()["steps"] == 1
        assert stream.talk.assert_ended("done")["steps"] == 1
        assert len(counted.engines[0].calls) == before + 1

    def test_web_socket_closed(self, opened, counted, logged):
        """A WebSocket that its caller closes is a stream that has ended."""
        stream = opened(WebSocketStream)
        stream.ask(1)
        stream.talk.connection.close(1000, "bye")
        wait_closed(counted, "made")
        assert logged(stream.talk).ended == "gone"

    @pytest.mark.parametrize("whole", [True, False], ids=["break", "no-break"])
    def test_end_of_body(self, opened, counted, whole, logged):
        """So is a body that ends, after its last line, which needs no line break."""
        stream = opened(NdjsonStream)
        stream.ask(1)
        message, rows = stream.message(2)
        line = json.dumps(message).encode()
        stream.talk.send_chunk(line + b"\n" if whole else line)
        stream.talk.no_more()
        stream.assert_right(stream.talk.receive(), rows, 3)
        assert stream.talk.assert_ended("done")["steps"] == 3
        wait_closed(counted, "made")
        assert logged(stream.talk).ended == "done"

    def test_empty_body(self, opened):
        """A body of nothing is a stream of nothing."""
        talk = opened(NdjsonStream).talk
        talk.no_more()
        last = talk.assert_ended("done")
        assert last == {"end": "done", "steps": 0, "state": None}

    def test_half_a_body(self, opened, counted, logged):
        """A caller that goes in the midst of its body, and of a line, has gone: that
        line is not computed."""
        stream = opened(NdjsonStream)
        stream.ask(1)
        before = len(counted.engines[0].calls)
        stream.talk.send_chunk(b'{"frames": [[1]]')
        stream.talk.close()
        wait_closed(counted, "made")
        assert logged(stream.talk).ended == "gone"
        assert len(counted.engines[0].calls) == before

    @pytest.mark.parametrize("computes", [False, True], ids=["waiting", "computing"])
    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_vanishes(self, counted, kind, computes, logged, caplog):
        """One that vanishes without a word has gone, whether its stream waits or
        computes, and that is no error."""
        own = {"X-Request-ID": f"{kind.__name__}-{computes}-{counted.task}"}
        message = b'{"frames": [[7]]}'
        if kind is WebSocketStream:
            connection = handshake(counted.url, "model=made", **own)
            message = frame(TEXT, message)
        else:
            connection = open_connection(counted.url)
            connection.sendall(chunked("model=made", **own))
            message = b"12\r\n%b\n\r\n" % message
        wait(lambda: streams_open(counted, "made") == 1, "it is open")
        if computes:
            hold_engines(counted)
            connection.sendall(message)
            wait_entered(counted)
        reset_connection(connection)
        release_engines(counted)
        wait_closed(counted, "made")
        assert logged(own["X-Request-ID"]).ended == "gone"
        assert {r.levelname for r in caplog.records} <= {"DEBUG", "INFO"}


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """The service, which waits for no stream for long."""
    folder = tmp_path_factory.mktemp("idle") / "bundles"
    with counting(folder, stream_idle_seconds=0.2) as made:
        yield made


@pytest.fixture(scope="module")
def ageing(tmp_path_factory):
    """The service, whose streams must go on over other connections soon."""
    folder = tmp_path_factory.mktemp("ageing") / "bundles"
    with counting(folder, stream_seconds=0.3) as made:
        yield made


@pytest.mark.parametrize("kind", TRANSPORTS)
class TestGone:
    def test_dropped(self, opened, counted, kind):
        """What waits of a caller that goes is not computed."""
        stream, other = opened(kind, first=101), opened(kind, first=3)
        hold_engines(counted)
        message, rows = other.message(1)
        other.talk.send(message)
        wait_entered(counted)
        stream.talk.send(stream.message(2)[0])

        def waiting():
            exposition = counted.metrics()
            return value(exposition, "unrolled_waiting_steps", model="made")

        wait(lambda: waiting() == 3, "it waits")
        stream.talk.close()
        if kind is WebSocketStream:
            wait(lambda: streams_open(counted, "made") == 1, "it has gone")
        release_engines(counted)
        other.assert_right(other.talk.receive(), rows, 1)
        wait(lambda: waiting() == 0, "nothing waits")
        if kind is WebSocketStream:
            assert 101 not in {f for c in counted.engines[0].calls for f in c.firsts}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(WebSocketStream, id="websocket"),
        pytest.param(
            NdjsonStream,
            id="lines",
        ),
    ],
)
class TestGoesWhenTold:
    @pytest.mark.parametrize("said", [True, False], ids=["end", "idle"])
    def test_logged(self, idle, kind, said, logged):
        """A caller that goes as soon as it is told that it ends has ended so."""
        with kind(idle.url, "model=made") as talk:
            CountingStream(talk, 7).ask(1)
            if said:
                talk.send({"end": True})
            last = talk.receive()
        assert last["end"] == ("done" if said else "idle")
        assert logged(talk).ended == last["end"]


class TestIdle:
    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_told(self, idle, kind, logged):
        """A stream that sends nothing is told that it ends, with a token that goes
        on."""
        with kind(idle.url, "model=made") as talk:
            stream = CountingStream(talk, 7)
            stream.ask(3)
            last = talk.assert_ended("idle")
        assert last["steps"] == 3
        wait_closed(idle, "made")
        assert logged(talk).ended == "idle"
        with kind(idle.url, "model=made") as talk:
            later = CountingStream(talk, 7)
            later.steps = 3
            later.ask(2, state=last["state"])

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_never_spoke(self, idle, kind):
        """So is one that never sent anything."""
        with kind(idle.url, "model=made") as talk:
            last = talk.assert_ended("idle")
        assert last == {"end": "idle", "steps": 0, "state": None}

    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_not_while_it_computes(self, idle, kind):
        """A stream that waits for the service is not idle, however long that takes."""
        with kind(idle.url, "model=made") as talk:
            stream = CountingStream(talk, 7)
            hold_engines(idle)
            message, rows = stream.message(2)
            talk.send(message)
            wait_entered(idle)
            with kind(idle.url, "model=made") as other:
                other.assert_ended("idle")  # so it has been looked for
            release_engines(idle)
            stream.assert_right(talk.receive(), rows, 2)
            stream.ask(1)


class TestStop:
    def stopped(self, folder, **limits):
        """The service, that may be told to stop within the block."""
        return counting(folder / "bundles", grace_seconds=2 * SECONDS, **limits)

    def test_told(self, tmp_path, logged, caplog):
        """Every open stream is told that the service stops, with a token to go on
        from elsewhere; a message under way is answered first, new streams are refused,
        and the service ends without being pressed."""
        with self.stopped(tmp_path) as service, ExitStack() as stack:
            streams = []
            for first, kind in enumerate(
                [WebSocketStream, NdjsonStream, WebSocketStream, NdjsonStream], 1
            ):
                talk = stack.enter_context(kind(service.url, "model=made"))
                streams.append(CountingStream(talk, first))
                streams[-1].ask(first)
            silent = [
                stack.enter_context(kind(service.url, "model=made"))
                for kind in (WebSocketStream, NdjsonStream)
            ]
            hold_engines(service)
            under_way = []
            for stream in streams[2:]:
                message, rows = stream.message(2)
                stream.talk.send(message)
                under_way.append(rows)
            wait_entered(service)

            def waiting():
                text = service.metrics()
                return value(text, "unrolled_waiting_steps", model="made") == 4

            wait(waiting, "both are with the engine")
            service.server.stop()
            for talk in silent:
                last = talk.assert_ended("stopping")
                assert (last["steps"], last["state"]) == (0, None)
            ends = [stream.talk.assert_ended("stopping") for stream in streams[:2]]
            response = service.http.post("/stream?model=made", content=b"")
            assert response.status_code == 503
            assert response.json()["type"] == "urn:unrolled:error:stopping"
            assert response.headers["retry-after"] == "1"
            release_engines(service)
            for stream, rows in zip(streams[2:], under_way, strict=True):
                stream.assert_right(stream.talk.receive(), rows, stream.steps)
                ends.append(stream.talk.assert_ended("stopping"))
            assert [end["steps"] for end in ends] == [1, 2, 5, 6]
            for talk in [*silent, *(stream.talk for stream in streams)]:
                assert logged(talk).ended == "stopping"
        assert {r.levelname for r in caplog.records} <= {"DEBUG", "INFO"}
        with counting(tmp_path / "bundles") as service:
            for stream, end, kind in zip(
                streams, ends, [NdjsonStream, WebSocketStream] * 2, strict=True
            ):
                with kind(service.url, "model=made") as talk:
                    later = CountingStream(talk, stream.first)
                    later.steps = stream.steps
                    later.ask(3, state=end["state"])

    @pytest.mark.parametrize(
        "kind",
        [
            pytest.param(
                WebSocketStream,
                id="websocket",
            ),
            pytest.param(NdjsonStream, id="lines"),
        ],
    )
    def test_takes_long(self, tmp_path, monkeypatch, kind):
        """A message that takes longer than streams have to end has the same seconds
        as every other request that is under way."""
        monkeypatch.setattr(server, "STREAM_SECONDS", 0.05)
        with self.stopped(tmp_path) as service, ExitStack() as stack:
            talk = stack.enter_context(kind(service.url, "model=made"))
            stream = CountingStream(talk, 7)
            hold_engines(service)
            message, rows = stream.message(2)
            talk.send(message)
            wait_entered(service)
            service.server.stop()
            port = service.server.servers[0]
            wait(lambda: not port.is_serving(), "the port is closed")
            release_engines(service)
            stream.assert_right(talk.receive(), rows, 2)
            talk.assert_ended("stopping")

    def test_in_the_midst(self, tmp_path):
        """Callers that send without a pause are told in the midst of that: every
        message before is answered, none after."""

        def pump(talk, stop):
            with suppress(OSError, ConnectionClosed):  # it is over
                while not stop.is_set():
                    talk.send({"frames": [[7]]})

        def listen(talk, counts):
            while "end" not in (told := talk.receive()):
                counts.append(told["steps"])
            return told

        stop = threading.Event()
        with (
            concurrent.futures.ThreadPoolExecutor(4) as together,
            self.stopped(tmp_path) as service,
            # By hand: a client library may drop what it has heard when it can't send.
            handshake(service.url, "model=made") as connection,
            NdjsonStream(service.url, "model=made") as other,
        ):
            one, counts = RawWebSocket(connection), ([], [])
            for talk in (one, other):
                together.submit(pump, talk, stop)
            try:
                ends = [
                    together.submit(listen, talk, steps)
                    for talk, steps in zip((one, other), counts, strict=True)
                ]
                wait(lambda: min(map(len, counts)) > 100, "they are in the midst")
                service.server.stop()
                for end, steps in zip(ends, counts, strict=True):
                    last = end.result(SECONDS)
                    assert last["end"] == "stopping"
                    assert steps == list(range(1, last["steps"] + 1))
            finally:
                stop.set()

    def test_who_says_nothing(self, tmp_path, caplog):
        """Callers that neither answer the goodbye nor read hold up no stop."""
        caplog.set_level(logging.ERROR)
        with self.stopped(tmp_path) as service:
            connections = [handshake(service.url, "model=made") for _ in range(3)]
            talks = [NdjsonStream(service.url, "model=made") for _ in range(3)]
            wait(lambda: streams_open(service, "made") == 6, "all are open")
        for one in [*connections, *talks]:
            one.close()
        assert caplog.records == []


# --- limits and what is told -----------------------------------------------------


WAYS = {
    "end": lambda talk: talk.end(),
    "close": lambda talk: talk.close(),
    "error-then-close": lambda talk: (talk.send("x"), talk.receive(), talk.close()),
}


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """The service, with room for two streams."""
    folder = tmp_path_factory.mktemp("limited") / "bundles"
    with counting(folder, max_streams=2) as made:
        yield made


class TestLimit:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_a_place_is_free(self, limited, kind, way):
        """No more streams than allowed are open at a time, and however one ends
        another has its place."""
        with kind(limited.url, "model=made") as staying:
            for _ in range(3):
                with kind(limited.url, "model=made") as talk:
                    response = limited.http.post("/stream?model=made", content=b"")
                    assert response.status_code == 503
                    problem = response.json()
                    assert problem["type"] == "urn:unrolled:error:too-many-streams"
                    assert "at most 2 streams" in problem["detail"]
                    assert response.headers["retry-after"] == "10"
                    CountingStream(talk, 3).ask(1)
                    WAYS[way](talk)
                wait(lambda: streams_open(limited, "made") == 1, "its place is free")
            CountingStream(staying, 5).ask(1)
        wait_closed(limited, "made")

    def test_refusals_take_no_place(self, limited):
        """What is refused at its beginning takes no place."""
        for _ in range(3):
            assert limited.http.post("/stream?model=nobody").status_code == 404
        assert streams_open(limited, "made") == 0
        with (
            WebSocketStream(limited.url, "model=made") as one,
            NdjsonStream(limited.url, "model=made") as other,
        ):
            CountingStream(one, 1).ask(1)
            CountingStream(other, 2).ask(1)

    def test_none_at_all(self, tmp_path):
        """With a limit of 0 there are no streams, and other requests are answered."""
        with counting(tmp_path / "bundles", max_streams=0) as service:
            response = service.http.post("/stream?model=made", content=b"")
            assert response.status_code == 503
            body = {"sequences": [[[7]]]}
            assert service.http.post("/classify", json=body).status_code == 200


@pytest.mark.parametrize("kind", TRANSPORTS)
class TestTold:
    def test_metrics(self, opened, counted, kind):
        """The metrics tell how many streams are open, how long answered messages
        took, what was refused, and the stream as one request."""
        assert streams_open(counted, "made") == 0
        before = counted.metrics()
        stream, other = opened(kind), opened(kind)
        assert streams_open(counted, "made") == 2
        for _ in range(3):
            stream.ask(2)
        for message in ("x", "y", {}, {"frames": [[1]] * 21}):
            stream.talk.send(message)
            stream.talk.receive()
        other.talk.end()
        wait(lambda: streams_open(counted, "made") == 1, "the other is closed")
        stream.talk.close()
        wait_closed(counted, "made")

        def grown(name, **labels):
            return value(counted.metrics(), name, **labels) - value(
                before, name, **labels
            )

        requests = {
            "method": kind.method,
            "route": "/stream",
            "status": str(kind.status),
        }
        name = "http_server_request_duration_seconds_count"
        wait(lambda: grown(name, **requests) == 2, "both are counted")
        seconds = "unrolled_stream_message_seconds"
        # The end, too, is a message that was taken.
        assert grown(f"{seconds}_count", model="made") in (3, 4)
        assert 0 < grown(f"{seconds}_sum", model="made") < SECONDS
        refused = "unrolled_refused_requests_total"
        assert grown(refused, kind="invalid-json") == 2
        assert grown(refused, kind="invalid-request") == 1
        assert grown(refused, kind="too-large") == 1
        useful = {"model": "made", "kind": "useful"}
        wait(lambda: grown("unrolled_steps_total", **useful) == 6, "all are counted")

    def test_log(self, running_server, kind, logged, caplog):
        """A stream is one line of the log, with model, messages and steps, and how it
        ended; no frame and no token is in it."""
        with kind(running_server.url, "model=walks") as talk:
            token = talk.ask([[1, 2, NUMBER]] * 4, return_state=True)["state"]
            talk.send({"frames": [[1, 2, NUMBER, 4]], CANARY: 1})
            talk.receive()
            talk.ask([[1, 2, NUMBER]], state=token)
            last = talk.end()
        entry = json.loads(JsonFormatter().format(logged(talk)))
        assert entry["message"] == "request"
        assert entry["level"] == "info"
        assert entry["method"] == kind.method
        assert entry["route"] == "/stream"
        assert entry["status"] == kind.status
        assert entry["request_id"] == talk.headers["x-request-id"]
        assert entry["duration_ms"] > 0
        assert entry["model"] == "walks"
        assert entry["messages"] == 4
        assert entry["steps"] == 5
        assert entry["ended"] == "done"
        text = "\n".join(map(JsonFormatter().format, caplog.records))
        for secret in (str(NUMBER), CANARY, token, last["state"], token[:40]):
            assert secret not in text
        for secret in (CANARY, token[:40]):
            assert secret not in running_server.metrics()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            WebSocketStream,
            id="websocket",
        ),
        pytest.param(NdjsonStream, id="lines"),
    ],
)
def test_bytes(running_server, kind, logged):
    """The log's line of a stream tells how many bytes were answered."""
    with kind(running_server.url, "model=tags") as talk:
        answer = talk.ask([[1, 2, 3]] * 50)
        talk.end()
    assert logged(talk).bytes_out > len(json.dumps(answer)) / 2


class TestAged:
    @pytest.mark.parametrize("kind", TRANSPORTS)
    def test_told(self, ageing, kind, logged):
        """A stream that never rests is told that it ends, between two answers, with a
        token that goes on."""
        with kind(ageing.url, "model=made") as talk:
            stream, last = CountingStream(talk, 7), {}
            while "end" not in last:
                message, rows = stream.message(1)
                with suppress(ConnectionClosed, OSError):
                    talk.send(message)
                last = talk.receive()
                if "end" not in last:
                    stream.assert_right(last, rows, stream.steps)
        assert last["end"] == "aged"
        wait_closed(ageing, "made")
        assert logged(talk).ended == "aged"
        with kind(ageing.url, "model=made") as talk:
            later = CountingStream(talk, 7)
            later.steps = last["steps"]
            later.ask(2, state=last["state"])
