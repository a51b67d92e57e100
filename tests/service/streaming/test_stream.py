"""Streams: answers, errors, and states that do not fit."""

import concurrent.futures
import json
import os
import signal
import threading
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codecs import stream_messages
from service.codecs.process import CodecProcesses
from service.errors import InternalError
from service.pool import pool, spawn
from service.settings import Settings
from service.telemetry.logs import JsonFormatter
from service.worker.engine import ENGINES
from tests.support.bundles import random_frames
from tests.support.scheduler import poisoned
from tests.support.servers import SECONDS, running, value, wait
from tests.support.streams import (
    KEY,
    CountingStream,
    NdjsonStream,
    WebSocketStream,
    hold_engines,
    numbers,
    release_engines,
    wait_entered,
)

TASKS = {"walks": "classify", "tags": "label"}
CLASSES = {"walks": ["run", "sit", "stand", "wälk"], "tags": ["noun", "verb", "other"]}
KINDS = {"websocket": WebSocketStream, "ndjson": NdjsonStream}
CLOSE = {"rtol": 0, "atol": 1e-5}
CANARY = "c4n4ry"  # input that no answer may contain


@pytest.fixture(
    scope="module",
    params=["onnx", pytest.param("tensorflow", marks=pytest.mark.slow)],
)
def service(request, bundles):
    """The service with either engine, in worker threads."""
    settings = Settings(port=0, bundles=bundles, engine=request.param, state_key=KEY)
    with running(settings, start=spawn.thread(ENGINES)) as service:
        models = service.http.get("/models").json()["models"]
        assert {model["engine"] for model in models} == {request.param}
        yield service


@pytest.fixture(scope="module")
def saved_model(bundles):
    """Computes a SavedModel's answer after each step [T, C], all at once."""
    import tensorflow as tf

    loaded = {name: tf.saved_model.load(str(bundles / name / "1")) for name in TASKS}

    def predict(name, frames):
        # A classifier gets all beginnings of the sequence, as one batch.
        count = len(frames) if TASKS[name] == "classify" else 1
        lengths = range(1, count + 1) if count > 1 else [len(frames)]
        outputs = loaded[name].signatures["serving_default"](
            frames=tf.constant(np.repeat(frames[None], count, 0)),
            lengths=tf.constant(lengths, tf.int32),
        )
        probabilities = outputs["probabilities"].numpy()
        return probabilities if TASKS[name] == "classify" else probabilities[0]

    return predict


def assert_right(name, answer, rows, steps):
    """All members of an answer agree with the probabilities after each of the message's
    steps [t, C], when so many steps have been taken in all."""
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
    """The prediction of a request that resumes from a token."""
    body = {
        "model": name,
        "sequences": [frames.tolist()],
        "states": [token],
        "return_state": True,
    }
    response = service.http.post(f"/{TASKS[name]}", json=body)
    assert response.status_code == 200, response.text
    return response.json()["predictions"][0]


@pytest.mark.parametrize("name", TASKS)
class TestAnswers:
    @given(
        hops=st.lists(
            st.tuples(
                st.sampled_from([*KINDS, "post"]),
                st.lists(st.integers(1, 9), min_size=1, max_size=4),
            ),
            min_size=1,
            max_size=4,
        ),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_cuts(self, service, saved_model, name, hops, seed):
        """However a sequence is cut into messages, and through whatever streams and
        requests its tokens take it, its answers are those of the whole sequence."""
        total = sum(sum(lengths) for _, lengths in hops)
        frames = random_frames(np.random.default_rng(seed), total)
        rows, start, token = saved_model(name, frames), 0, None
        for way, lengths in hops:
            parts = []
            for length in lengths:
                parts.append(slice(start, start + length))
                start += length
            if way == "post":
                for part in parts:
                    answer = post(service, name, frames[part], token)
                    assert_right(name, answer, rows[part], part.stop)
                    token = answer["state"]
                continue
            with KINDS[way](service.url, f"model={name}") as stream:
                state = {} if token is None else {"state": token}
                for part in parts:
                    answer = stream.ask(frames[part], **state)
                    assert_right(name, answer, rows[part], part.stop)
                    state = {}
                last = stream.end()
            assert last["steps"] == start
            token = last["state"]

    def test_among_others(self, service, saved_model, name):
        """Streams that are open at the same time, among other requests, do not affect
        each other."""
        lengths = {"stream": [1, 7, 2, 30, 1, 1, 12, 3], "request": [5, 90, 40, 1]}
        barrier = threading.Barrier(10)

        def run_stream(number):
            rng = np.random.default_rng(number)
            frames = random_frames(rng, sum(lengths["stream"]))
            kind = (WebSocketStream, NdjsonStream)[number % 2]
            with kind(service.url, f"model={name}") as stream:
                barrier.wait(SECONDS)
                start, answers = 0, []
                for length in lengths["stream"]:
                    answer = stream.ask(frames[start : start + length])
                    answers.append((answer, length))
                    start += length
            return frames, answers

        def run_requests(number):
            rng = np.random.default_rng(100 + number)
            sequences = [random_frames(rng, length) for length in lengths["request"]]
            body = {"model": name, "sequences": [s.tolist() for s in sequences]}
            barrier.wait(SECONDS)
            answers = []
            for _ in range(5):
                response = service.http.post(f"/{TASKS[name]}", json=body)
                answers.append(response.json()["predictions"])
            return sequences, answers

        with concurrent.futures.ThreadPoolExecutor(10) as executor:
            streams = [executor.submit(run_stream, number) for number in range(6)]
            requests = [executor.submit(run_requests, number) for number in range(4)]
        for stream in streams:
            frames, answers = stream.result()
            rows, start = saved_model(name, frames), 0
            for answer, length in answers:
                part = rows[start : start + length]
                assert_right(name, answer, part, start + length)
                start += length
        for request in requests:
            sequences, answers = request.result()
            for predictions in answers:
                for frames, prediction in zip(sequences, predictions, strict=True):
                    rows = saved_model(name, frames)
                    right = rows if TASKS[name] == "label" else rows[-1]
                    np.testing.assert_allclose(numbers(prediction), right, **CLOSE)

    def test_states(self, service, saved_model, name):
        """`"state": null` starts afresh, and a token resumes where it was made, at any
        time in the same stream. A token is returned only if it is asked for."""
        frames = random_frames(np.random.default_rng(1), 6)
        rows = saved_model(name, frames)
        for kind in KINDS.values():
            with kind(service.url, f"model={name}") as stream:
                token = stream.ask(frames[:4], return_state=True)["state"]
                stream.ask(frames)
                answer = stream.ask(frames[:2], state=None)
                assert_right(name, answer, rows[:2], 2)
                assert_right(name, stream.ask(frames[2:3]), rows[2:3], 3)
                answer = stream.ask(frames[4:], state=token)
                assert_right(name, answer, rows[4:], 6)
                for return_state in (None, True, False, True, None):
                    members = {"return_state": return_state}
                    if return_state is None:
                        members = {}
                    answer = stream.ask(frames[:1], **members)
                    assert ("state" in answer) is bool(return_state)

    def test_top_k(self, service, name):
        """`top_k` returns the most probable classes, as in a request."""
        frames = random_frames(np.random.default_rng(3), 5)
        for kind, top_k in zip([*KINDS.values()] * 2, (1, 2, 3, 10**8), strict=True):
            body = {"model": name, "sequences": [frames.tolist()], "top_k": top_k}
            response = service.http.post(f"/{TASKS[name]}", json=body)
            (expected,) = response.json()["predictions"]
            with kind(service.url, f"model={name}&top_k={top_k}") as stream:
                answer = stream.ask(frames)
            assert set(answer) == set(expected) | {"steps"}
            steps, right = answer["top"], expected["top"]
            if TASKS[name] == "classify":
                steps, right = [steps], [right]
            for choices, expected_choices in zip(steps, right, strict=True):
                pairs = zip(choices, expected_choices, strict=True)
                for choice, expected_choice in pairs:
                    assert choice["label"] == expected_choice["label"]
                    probability = expected_choice["probability"]
                    assert choice["probability"] == pytest.approx(probability, abs=1e-5)

    @pytest.mark.slow
    def test_large(self, service, name):
        """A message of the largest size is answered like a short one."""
        frames = random_frames(np.random.default_rng(4), 9_000)
        expected = post(service, name, frames, None)
        for kind in KINDS.values():
            with kind(service.url, f"model={name}") as stream:
                stream.ask(frames[:1])
                answer = stream.ask(frames[1:])
                assert answer["steps"] == 9_000
                right = numbers(expected)
                right = right[1:] if TASKS[name] == "label" else right
                np.testing.assert_allclose(numbers(answer), right, **CLOSE)
                stream.send({"frames": [[1, 2, "3"]] * 10_000})
                error = stream.receive()["error"]
                assert error["errors"][0]["path"] == "frames[0][2]"
                assert stream.end()["steps"] == 9_000


# --- errors ----------------------------------------------------------------------


def bad(name, message, status, slug, *paths):
    return name, message, status, slug, list(paths)


def misfit(name, message, *paths):
    return bad(name, message, 422, "invalid-request", *paths)


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

    def test_engine_fails(self, opened, caplog):
        """If the engine fails, the client gets a bare 500, and the log has the cause under
        the stream's id. The stream continues from where it was."""
        counting = opened()
        counting.ask(2)
        for engine in opened.service.engines:
            engine.hook = poisoned([7])
        try:
            counting.stream.send(counting.message(4)[0])
            answer = counting.stream.receive()
        finally:
            for engine in opened.service.engines:
                engine.hook = lambda call, answer: None
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
    def test_not_finite(self, opened, number):
        """A result that is not finite is the client's error if its numbers are extreme,
        otherwise the service's."""
        counting = opened(first=number if number < 100 else 7)
        counting.ask(2)
        for engine in opened.service.engines:
            engine.hook = lambda call, answer: answer * np.nan
        try:
            counting.stream.send({"frames": [[number]]})
            answer = counting.stream.receive()
        finally:
            for engine in opened.service.engines:
                engine.hook = lambda call, answer: None
        if number > 100:
            assert_error(answer, 2, 422, "invalid-request", ["frames"])
        else:
            assert_error(answer, 2, 500, "internal-error")
        counting.ask(1)

    def test_overloaded(self, opened):
        """A message is refused while too much waits, and answered when sent again later."""
        counting, other = opened(), opened(first=3)
        counting.ask(1)
        hold_engines(opened.service)
        message, rows = other.message(18)
        other.stream.send(message)
        wait_entered(opened.service)
        counting.stream.send(counting.message(5)[0])
        answer = counting.stream.receive()
        problem = assert_error(answer, 1, 503, "overloaded")
        assert "18 steps wait for made" in problem["detail"]
        counting.steps -= 5
        release_engines(opened.service)
        other.assert_right(other.stream.receive(), rows, 18)
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
        task=st.sampled_from([*TASKS.values()]),
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


class TestOtherStates:
    def test_another_model(self, service):
        """A token of another model is refused with the reason, and the stream continues."""
        frames = random_frames(np.random.default_rng(5), 1)
        for kind in KINDS.values():
            with kind(service.url, "model=tags") as stream:
                token = stream.ask(frames, return_state=True)["state"]
            with kind(service.url, "model=walks") as stream:
                expected = numbers(stream.ask(frames))
                stream.send({"frames": frames.tolist(), "state": token})
                answer = stream.receive()
                problem = assert_error(answer, 1, 409, "state-conflict", ["state"])
                assert token[:20] not in json.dumps(problem)
                again = numbers(stream.ask(frames, state=None))
                assert again == pytest.approx(expected, abs=1e-6)

    @pytest.mark.slow
    def test_worker_dies(self, bundles, monkeypatch):
        """A stream survives its worker: the current message is answered by another worker,
        and the next one continues from there."""
        monkeypatch.setattr(pool, "RESTART_SECONDS", 0.01)
        processes = []

        def start(settings):
            worker = spawn.process(settings)
            processes.append(worker.wait.__self__)
            return worker

        frames = random_frames(np.random.default_rng(6), 8)
        settings = Settings(port=0, bundles=bundles / "tags", workers=1)
        with running(settings, start=start) as service, ExitStack() as stack:
            stream = stack.enter_context(WebSocketStream(service.url, "model=tags"))
            expected = numbers(stream.ask(frames))
            stream.ask(frames[:3], state=None)
            os.kill(processes[0].pid, signal.SIGSTOP)
            stream.send({"frames": frames[3:5].tolist()})

            def waiting():
                exposition = service.metrics()
                name = "unrolled_waiting_steps"
                return value(exposition, name, model="tags") == 2

            wait(waiting, "it is with the worker")
            os.kill(processes[0].pid, signal.SIGKILL)
            answer = stream.receive()
            np.testing.assert_allclose(numbers(answer), expected[3:5], **CLOSE)
            answer = stream.ask(frames[5:])
            np.testing.assert_allclose(numbers(answer), expected[5:], **CLOSE)
