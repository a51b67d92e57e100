"""Triton's statistics: their arithmetic, and requests of every kind."""

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
    def test_add(self):
        """It counts, and sums nanoseconds; a negative duration, of clocks that disagree,
        is zero."""
        duration = Duration()
        assert duration.as_dict() == IDLE
        for seconds in (0.5, 0.25, 0.0, -5.0):
            duration.add(seconds)
        assert duration.as_dict() == {"count": 4, "ns": 750_000_000}


class TestStatistics:
    def test_nothing_yet(self):
        """Without any request all fields exist, and are zero."""
        stats = Statistics().as_dict("walks", "3")
        durations = stats.pop("inference_stats")
        assert stats == {
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

    def test_success(self):
        """An answer counts once, its sequences as inferences, its times by part; success is
        their sum."""
        statistics, before = Statistics(), int(1000 * time.time())
        statistics.record_success(3, 1, 2, 4, 8)
        statistics.record_success(1, 0, 0, 1, 0)
        stats = statistics.as_dict("walks", "1")
        assert stats["inference_count"] == 4
        assert stats["execution_count"] == 0
        assert before <= stats["last_inference"] <= 1000 * time.time()
        assert {k: v for k, v in stats["inference_stats"].items() if v["count"]} == {
            "success": {"count": 2, "ns": 16 * NANO},
            "compute_input": {"count": 2, "ns": 1 * NANO},
            "queue": {"count": 2, "ns": 2 * NANO},
            "compute_infer": {"count": 2, "ns": 5 * NANO},
            "compute_output": {"count": 2, "ns": 8 * NANO},
        }

    def test_failure(self):
        """A failure counts as nothing else."""
        statistics = Statistics()
        statistics.record_failure(0.5)
        stats = statistics.as_dict("walks", "1")
        fail = {"count": 1, "ns": NANO // 2}
        assert stats["inference_stats"] == Statistics().as_dict("walks", "1")[
            "inference_stats"
        ] | {"fail": fail}
        assert (stats["inference_count"], stats["last_inference"]) == (0, 0)

    def test_execution(self):
        """Engine calls are counted by batch size, the smallest first."""
        statistics = Statistics()
        for rows, seconds in [(8, 1), (1, 2), (8, 3)]:
            statistics.record_execution(rows, seconds)
        stats = statistics.as_dict("walks", "1")
        assert stats["execution_count"] == 3
        assert stats["inference_count"] == 0
        assert stats["batch_stats"] == [
            {
                "batch_size": rows,
                "compute_input": {"count": count, "ns": 0},
                "compute_infer": {"count": count, "ns": seconds * NANO},
                "compute_output": {"count": count, "ns": 0},
            }
            for rows, count, seconds in [(1, 1, 2), (8, 2, 4)]
        ]

    def test_a_copy(self):
        """Later requests don't change what was returned."""
        statistics = Statistics()
        stats = statistics.as_dict("walks", "1")
        statistics.record_success(1, 1, 1, 1, 1)
        assert stats["inference_stats"]["success"] == IDLE


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
REQUESTS = [
    ("/classify", {"sequences": ROWS}, 2),
    ("/v2/models/made/infer", {"inputs": [TENSOR]}, 2),
    ("/v2/models/made/versions/1/infer", {"inputs": [TENSOR]}, 2),
    ("/v2/models/made/infer", SEQUENCE, 1),
    ("/v1/models/made:predict", {"instances": ROWS}, 2),
    ("/v1/models/made:predict", {"inputs": {"frames": ROWS}}, 2),
    ("/v1/models/made:classify", EXAMPLES, 2),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The service with an engine that counts and can be blocked."""
    folder = tmp_path_factory.mktemp("statistics") / "bundles"
    with counting(folder, queue_steps=100, max_steps=100) as running_service:
        yield running_service


def statistics_of(service, path="/v2/models/made/stats"):
    (stats,) = service.http.get(path).json()["model_stats"]
    return stats


class Counts:
    """How much the statistics grow."""

    def __init__(self, service):
        self._service, self._before = service, statistics_of(service)

    def assert_grown(self, *, success=0, fail=0, rows=0):
        """Check the growth: exactly so many requests and sequences, any engine calls."""
        stats, before = statistics_of(self._service), self._before
        now, was = stats["inference_stats"], before["inference_stats"]
        grown = {key: now[key]["count"] - was[key]["count"] for key in now}
        parts = ("success", "queue", "compute_input", "compute_infer", "compute_output")
        assert grown == dict.fromkeys(now, 0) | {"fail": fail} | dict.fromkeys(
            parts, success
        )
        assert stats["inference_count"] - before["inference_count"] == rows
        assert all(now[key]["ns"] >= was[key]["ns"] for key in now)

    def executed(self):
        """Engine calls meanwhile, which may be counted a moment later."""
        now = statistics_of(self._service)["execution_count"]
        return now - self._before["execution_count"]


class TestServed:
    def test_each_protocol(self, service):
        """A request of any protocol is one success, with an inference for each sequence,
        and its engine calls are counted by batch size."""
        for path, body, rows in REQUESTS:
            counts = Counts(service)
            response = service.http.post(path, json=body)
            assert response.status_code == 200, response.text
            counts.assert_grown(success=1, rows=rows)
            wait(lambda c=counts: c.executed() >= 1, "the engine calls are counted")
            stats = statistics_of(service)
            batches = {batch["batch_size"]: batch for batch in stats["batch_stats"]}
            assert rows in batches
            calls = sum(b["compute_infer"]["count"] for b in batches.values())
            assert calls == stats["execution_count"]
            durations = stats["inference_stats"]
            total = durations["success"]["ns"]
            parts = ("queue", "compute_input", "compute_infer", "compute_output")
            assert 0 < sum(durations[key]["ns"] for key in parts) <= total + 1000
            assert stats["last_inference"] > 0

    @pytest.mark.parametrize("kind", [WebSocketStream, NdjsonStream])
    def test_stream(self, service, kind):
        """Each message of a stream is a request with one sequence."""
        counts = Counts(service)
        with kind(service.url, "model=made") as stream:
            for _ in range(4):
                stream.ask([[7], [8]])
            stream.end()
        counts.assert_grown(success=4, rows=4)
        wait(lambda: counts.executed() >= 4, "the engine calls are counted")

    def test_engine_fails(self, service):
        """A request, or a message, that the engine fails on is one failure."""
        (engine,) = service.engines
        hook, engine.hook = engine.hook, lambda _, answer: np.full_like(answer, np.nan)
        try:
            for path, body, _ in REQUESTS:
                counts = Counts(service)
                assert service.http.post(path, json=body).status_code == 500
                counts.assert_grown(fail=1)
            for kind in (WebSocketStream, NdjsonStream):
                counts = Counts(service)
                with kind(service.url, "model=made") as stream:
                    assert "probabilities" not in stream.ask([[7]])
                counts.assert_grown(fail=1)
        finally:
            engine.hook = hook

    def test_overloaded(self, service):
        """So is a request that is refused because too much waits."""
        hold_engines(service)

        def start(steps):
            body = {"sequences": [[[7]] * steps]}
            thread = threading.Thread(
                target=service.http.post, args=("/classify",), kwargs={"json": body}
            )
            thread.start()
            return thread

        threads = [start(98)]
        try:
            wait_entered(service)
            threads.append(start(2))
            admission = service.registry.get("made").admission
            wait(lambda: admission.wait_estimate.steps == 100, "the queue is full")
            for path, body, _ in REQUESTS:
                counts = Counts(service)
                response = service.http.post(path, json=body)
                assert response.status_code == 503
                assert int(response.headers["retry-after"]) >= 1
                counts.assert_grown(fail=1)
        finally:
            release_engines(service)
            for thread in threads:
                thread.join(SECONDS)

    def test_invalid(self, service):
        """A body that can't be decoded counts as nothing."""
        counts = Counts(service)
        for path in ("/classify", "/v2/models/made/infer", "/v1/models/made:predict"):
            response = service.http.post(path, content=b"{")
            assert response.status_code == 400
        counts.assert_grown()

    def test_paths(self, service):
        """There are statistics of a name, of a version, and of all models."""
        for path in (
            "/v2/models/made/stats",
            "/v2/models/made/versions/1/stats",
            "/v2/models/made@1/stats",
            "/v2/models/stats",
        ):
            stats = statistics_of(service, path)
            assert (stats["name"], stats["version"]) == ("made", "1")
            expected = statistics_of(service)["inference_stats"]
            assert stats["inference_stats"] == expected
        for path in ("/v2/models/made/versions/2/stats", "/v2/models/nobody/stats"):
            assert service.http.get(path).status_code == 404
