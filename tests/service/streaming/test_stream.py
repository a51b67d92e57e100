"""Streams: answers, metrics and logs, whatever messages a sequence is cut into."""

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

from service.pool import pool, spawn
from service.settings import Settings
from service.telemetry.logs import JsonFormatter
from service.worker.engine import ENGINES
from tests.support.bundles import random_frames
from tests.support.servers import CLASSES, SECONDS, TASKS, running, value, wait
from tests.support.streams import (
    KEY,
    KINDS,
    WebSocketStream,
    numbers,
    streams_open,
    wait_closed,
)

NAMES = ("walks", "tags")
CLOSE = {"rtol": 0, "atol": 1e-5}
CANARY, NUMBER = "c4n4ry", 73910.4242  # input that no answer or log may contain


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
def rows_of(saved_model):
    """Computes a SavedModel's answer after each step [T, C], all at once."""

    def predict(name, frames):
        classifies = TASKS[name] == "classify"
        return saved_model(name, frames, [*range(1, 1 + len(frames))] * classifies)

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


@pytest.mark.parametrize("name", NAMES)
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
    def test_cuts(self, service, rows_of, name, hops, seed):
        """However a sequence is cut into messages, and through whatever streams and
        requests its tokens take it, its answers are those of the whole sequence."""
        total = sum(sum(lengths) for _, lengths in hops)
        frames = random_frames(np.random.default_rng(seed), total)
        rows, start, token = rows_of(name, frames), 0, None
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

    def test_among_others(self, service, rows_of, name):
        """Streams that are open at the same time, among other requests, do not affect
        each other."""
        lengths = {"stream": [1, 7, 2, 30, 1, 1, 12, 3], "request": [5, 90, 40, 1]}
        barrier = threading.Barrier(10)

        def run_stream(number):
            rng = np.random.default_rng(number)
            frames = random_frames(rng, sum(lengths["stream"]))
            kind = [*KINDS.values()][number % 2]
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
            rows, start = rows_of(name, frames), 0
            for answer, length in answers:
                part = rows[start : start + length]
                assert_right(name, answer, part, start + length)
                start += length
        for request in requests:
            sequences, answers = request.result()
            for predictions in answers:
                for frames, prediction in zip(sequences, predictions, strict=True):
                    rows = rows_of(name, frames)
                    right = rows if TASKS[name] == "label" else rows[-1]
                    np.testing.assert_allclose(numbers(prediction), right, **CLOSE)

    def test_states(self, service, rows_of, name):
        """`"state": null` starts afresh, and a token resumes where it was made, at any
        time in the same stream. A token is returned only if it is asked for."""
        frames = random_frames(np.random.default_rng(1), 6)
        rows = rows_of(name, frames)
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


@pytest.mark.slow
def test_worker_dies(bundles, monkeypatch):
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


def test_metrics(opened):
    """Metrics have the open streams, the time of answered messages, the errors, and each
    stream as one request."""
    service, kind = opened.service, opened.kind
    assert streams_open(service, "made") == 0
    before = service.metrics()
    counted, other = opened(), opened()
    assert streams_open(service, "made") == 2
    for _ in range(3):
        counted.ask(2)
    for message in ("x", "y", {}, {"frames": [[1]] * 21}):
        counted.stream.send(message)
        counted.stream.receive()
    other.stream.end()
    wait(lambda: streams_open(service, "made") == 1, "the other is closed")
    counted.stream.close()
    wait_closed(service, "made")

    def grown(name, **labels):
        now = value(service.metrics(), name, **labels)
        return now - value(before, name, **labels)

    status = str(kind.status)
    requests = {"method": kind.method, "route": "/stream", "status": status}
    name = "http_server_request_duration_seconds_count"
    wait(lambda: grown(name, **requests) == 2, "both are counted")
    seconds = "unrolled_stream_message_seconds"
    # The end is a message too, which may be counted or not.
    assert grown(f"{seconds}_count", model="made") in (3, 4)
    assert 0 < grown(f"{seconds}_sum", model="made") < SECONDS
    refused = "unrolled_refused_requests_total"
    assert grown(refused, kind="invalid-json") == 2
    assert grown(refused, kind="invalid-request") == 1
    assert grown(refused, kind="too-large") == 1
    useful = {"model": "made", "kind": "useful"}
    wait(lambda: grown("unrolled_steps_total", **useful) == 6, "all are counted")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_log(running_server, kind, logged, caplog):
    """A stream is one log record, with its model, messages, steps, bytes and end. No frame
    and no token is logged."""
    with kind(running_server.url, "model=walks") as stream:
        token = stream.ask([[1, 2, NUMBER]] * 4, return_state=True)["state"]
        stream.send({"frames": [[1, 2, NUMBER, 4]], CANARY: 1})
        stream.receive()
        answer = stream.ask([[1, 2, NUMBER]], state=token)
        last = stream.end()
    entry = json.loads(JsonFormatter().format(logged(stream)))
    assert entry["message"] == "request"
    assert entry["level"] == "info"
    assert entry["method"] == kind.method
    assert entry["route"] == "/stream"
    assert entry["status"] == kind.status
    assert entry["request_id"] == stream.headers["x-request-id"]
    assert entry["duration_ms"] > 0
    assert entry["model"] == "walks"
    assert entry["messages"] == 4
    assert entry["steps"] == 5
    assert entry["ended"] == "done"
    assert entry["bytes_out"] > len(json.dumps([answer, last]))
    text = "\n".join(map(JsonFormatter().format, caplog.records))
    for secret in (str(NUMBER), CANARY, token, last["state"], token[:40]):
        assert secret not in text
    for secret in (CANARY, token[:40]):
        assert secret not in running_server.metrics()
