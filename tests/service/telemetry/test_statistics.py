"""What Triton's statistics extension tells: counted from requests of every kind."""

import threading
import time

import numpy as np
import pytest

from service.telemetry.statistics import Duration, Statistics
from tests.support.servers import SECONDS, wait
from tests.support.streams import (
    NdjsonStream,
    WebSocketStream,
    counting,
    hold_engines,
    release_engines,
    wait_entered,
)

NANO = 10**9
IDLE = {"count": 0, "ns": 0}


class TestDuration:
    def test_adds_up(self):
        """It tells how often, and how many nanoseconds altogether."""
        made = Duration()
        assert made.as_dict() == IDLE
        for seconds in (0.5, 0.25, 0.0):
            made.add(seconds)
        assert made.as_dict() == {"count": 3, "ns": 750_000_000}

    def test_never_less(self):
        """Clocks that disagree make no count smaller."""
        made = Duration()
        made.add(1.0)
        made.add(-5.0)
        assert made.as_dict() == {"count": 2, "ns": NANO}


class TestTold:
    def test_nothing_yet(self):
        """Of a model that was never asked all members are there, and zero."""
        told = Statistics().as_dict("walks", "3")
        durations = told.pop("inference_stats")
        assert told == {
            "name": "walks",
            "version": "3",
            "last_inference": 0,
            "inference_count": 0,
            "execution_count": 0,
            "batch_stats": [],
            "memory_usage": [],
            "response_stats": {},
        }
        assert durations == dict.fromkeys(
            [
                "success",
                "fail",
                "queue",
                "compute_input",
                "compute_infer",
                "compute_output",
                "cache_hit",
                "cache_miss",
            ],
            IDLE,
        )

    def test_answered(self):
        """An answer counts once, its rows as inferences, its seconds where they were
        spent; a success is all of them."""
        made, before = Statistics(), int(1000 * time.time())
        made.record_success(3, 1, 2, 4, 8)
        made.record_success(1, 0, 0, 1, 0)
        told = made.as_dict("walks", "1")
        assert told["inference_count"] == 4
        assert told["execution_count"] == 0
        assert before <= told["last_inference"] <= 1000 * time.time()
        assert {k: v for k, v in told["inference_stats"].items() if v["count"]} == {
            "success": {"count": 2, "ns": 16 * NANO},
            "compute_input": {"count": 2, "ns": 1 * NANO},
            "queue": {"count": 2, "ns": 2 * NANO},
            "compute_infer": {"count": 2, "ns": 5 * NANO},
            "compute_output": {"count": 2, "ns": 8 * NANO},
        }

    def test_failed(self):
        """A failure counts as nothing else."""
        made = Statistics()
        made.record_failure(0.5)
        told = made.as_dict("walks", "1")
        fail = {"count": 1, "ns": NANO // 2}
        assert told["inference_stats"] == Statistics().as_dict("walks", "1")[
            "inference_stats"
        ] | {"fail": fail}
        assert (told["inference_count"], told["last_inference"]) == (0, 0)

    def test_executed(self):
        """Engine calls are told by their rows, the fewest first."""
        made = Statistics()
        for rows, seconds in [(8, 1), (1, 2), (8, 3)]:
            made.record_execution(rows, seconds)
        told = made.as_dict("walks", "1")
        assert told["execution_count"] == 3
        assert told["inference_count"] == 0
        assert told["batch_stats"] == [
            {
                "batch_size": rows,
                "compute_input": {"count": count, "ns": 0},
                "compute_infer": {"count": count, "ns": seconds * NANO},
                "compute_output": {"count": count, "ns": 0},
            }
            for rows, count, seconds in [(1, 1, 2), (8, 2, 4)]
        ]

    def test_a_copy(self):
        """What was told is not changed by what comes after."""
        made = Statistics()
        told = made.as_dict("walks", "1")
        made.record_success(1, 1, 1, 1, 1)
        assert told["inference_stats"]["success"] == IDLE


# --- through the server ----------------------------------------------------------

ROWS = [[[7], [8]], [[9], [3]]]
TENSOR = {
    "name": "frames",
    "datatype": "FP32",
    "shape": [2, 2, 1],
    "data": [7, 8, 9, 3],
}
SEQUENCE = {
    "inputs": [{"name": "frames", "datatype": "FP32", "shape": [1, 1, 1], "data": [7]}],
    "parameters": {"sequence_id": 5, "sequence_start": True, "sequence_end": True},
}
EXAMPLES = {"examples": [{"frames": [7.0, 8.0]}, {"frames": [9.0]}]}
DIALECTS = [
    pytest.param("/classify", {"sequences": ROWS}, 2, id="native"),
    pytest.param("/v2/models/made/infer", {"inputs": [TENSOR]}, 2, id="v2"),
    pytest.param(
        "/v2/models/made/versions/1/infer", {"inputs": [TENSOR]}, 2, id="v2-version"
    ),
    pytest.param("/v2/models/made/infer", SEQUENCE, 1, id="v2-sequence"),
    pytest.param("/v1/models/made:predict", {"instances": ROWS}, 2, id="v1-rows"),
    pytest.param(
        "/v1/models/made:predict", {"inputs": {"frames": ROWS}}, 2, id="v1-columns"
    ),
    pytest.param("/v1/models/made:classify", EXAMPLES, 2, id="v1-classify"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The service with an engine that counts and can be held."""
    folder = tmp_path_factory.mktemp("statistics") / "bundles"
    with counting(folder, queue_steps=100, max_steps=100) as made:
        yield made


def told(service, path="/v2/models/made/stats"):
    (stats,) = service.http.get(path).json()["model_stats"]
    return stats


class Counts:
    """How much the statistics grow."""

    def __init__(self, service):
        self._service, self._before = service, told(service)

    def assert_grown(self, *, success=0, fail=0, rows=0):
        """By exactly so many requests and rows, engine calls as they may be."""
        stats, before = told(self._service), self._before
        now, was = stats["inference_stats"], before["inference_stats"]
        grown = {key: now[key]["count"] - was[key]["count"] for key in now}
        parts = ("success", "queue", "compute_input", "compute_infer", "compute_output")
        assert grown == dict.fromkeys(now, 0) | {"fail": fail} | dict.fromkeys(
            parts, success
        )
        assert stats["inference_count"] - before["inference_count"] == rows
        assert all(now[key]["ns"] >= was[key]["ns"] for key in now)

    def executed(self):
        """Engine calls meanwhile, which may be told a moment later."""
        now = told(self._service)["execution_count"]
        return now - self._before["execution_count"]


class TestServed:
    @pytest.mark.parametrize(("path", "body", "rows"), DIALECTS)
    def test_each_dialect(self, service, path, body, rows):
        """A request in whatever dialect is one success, with as many inferences as it
        has sequences, and its engine calls are told by their rows."""
        counts = Counts(service)
        for _ in range(3):
            response = service.http.post(path, json=body)
            assert response.status_code == 200, response.text
        counts.assert_grown(success=3, rows=3 * rows)
        wait(lambda: counts.executed() >= 3, "the engine calls are told")
        stats = told(service)
        batches = {one["batch_size"]: one for one in stats["batch_stats"]}
        assert rows in batches
        calls = sum(one["compute_infer"]["count"] for one in batches.values())
        assert calls == stats["execution_count"]
        durations = stats["inference_stats"]
        whole = durations["success"]["ns"]
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        assert 0 < sum(durations[key]["ns"] for key in parts) <= whole + 1000
        assert stats["last_inference"] > 0

    @pytest.mark.parametrize(
        "kind", [WebSocketStream, NdjsonStream], ids=["websocket", "lines"]
    )
    def test_stream(self, service, kind):
        """Each message of a stream is a request with one row."""
        counts = Counts(service)
        with kind(service.url, "model=made") as talk:
            for _ in range(4):
                talk.ask([[7], [8]])
            talk.end()
        counts.assert_grown(success=4, rows=4)
        wait(lambda: counts.executed() >= 4, "the engine calls are told")

    @pytest.mark.parametrize(("path", "body", "rows"), DIALECTS)
    def test_engine_fails(self, service, path, body, rows):
        """A request that the engine fails on is one failure, and no inference."""

        def hook(call, answer):
            return np.full_like(answer, np.nan)

        (engine,) = service.engines
        right, engine.hook = engine.hook, hook
        try:
            counts = Counts(service)
            response = service.http.post(path, json=body)
            assert response.status_code == 500
            counts.assert_grown(fail=1)
        finally:
            engine.hook = right

    @pytest.mark.parametrize(
        "kind", [WebSocketStream, NdjsonStream], ids=["websocket", "lines"]
    )
    def test_stream_fails(self, service, kind):
        """So is a message of a stream."""
        (engine,) = service.engines
        right, engine.hook = engine.hook, lambda _, answer: np.full_like(answer, np.nan)
        try:
            counts = Counts(service)
            with kind(service.url, "model=made") as talk:
                assert "probabilities" not in talk.ask([[7]])
            counts.assert_grown(fail=1)
        finally:
            engine.hook = right

    @pytest.mark.parametrize(("path", "body", "rows"), DIALECTS)
    def test_overloaded(self, service, path, body, rows):
        """So is one that is refused since too much waits."""
        hold_engines(service)
        long = {"sequences": [[[7]] * 98]}
        held = threading.Thread(
            target=service.http.post, args=("/classify",), kwargs={"json": long}
        )
        held.start()
        try:
            wait_entered(service)
            filled = threading.Thread(
                target=service.http.post,
                args=("/classify",),
                kwargs={"json": {"sequences": [[[7]] * 2]}},
            )
            filled.start()
            admission = service.registry.get("made").admission
            wait(lambda: admission.wait_estimate.steps == 100, "as much waits as may")
            counts = Counts(service)
            response = service.http.post(path, json=body)
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            counts.assert_grown(fail=1)
        finally:
            release_engines(service)
            held.join(SECONDS)
            filled.join(SECONDS)

    def test_not_understood(self, service):
        """What never was a request to the model is neither."""
        counts = Counts(service)
        for path in ("/classify", "/v2/models/made/infer", "/v1/models/made:predict"):
            response = service.http.post(path, content=b"{")
            assert response.status_code == 400
        counts.assert_grown()

    @pytest.mark.parametrize(
        "path",
        [
            "/v2/models/made/stats",
            "/v2/models/made/versions/1/stats",
            "/v2/models/made@1/stats",
            "/v2/models/stats",
        ],
    )
    def test_paths(self, service, path):
        """They are told of a name, of a version, and of all that is served."""
        stats = told(service, path)
        assert (stats["name"], stats["version"]) == ("made", "1")
        assert stats["inference_stats"] == told(service)["inference_stats"]

    def test_unknown(self, service):
        """Of a version that is not served there are none."""
        for path in ("/v2/models/made/versions/2/stats", "/v2/models/nobody/stats"):
            assert service.http.get(path).status_code == 404
