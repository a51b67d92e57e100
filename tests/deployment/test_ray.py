"""The service on a real Ray cluster of two nodes: autoscaling, a replica that dies, and
bulk jobs."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx
import numpy as np
import pytest

from service.client import Client, RequestError
from tests.support.bundles import copy_bundle, random_frames
from tests.support.ray import SECONDS, cluster, deployed, needs_ray
from tests.support.servers import ROOT, wait

pytestmark = [pytest.mark.ray, needs_ray]
KEY = "k" * 64
CLOSE = {"rtol": 0, "atol": 1e-5}
FAST_SCALING = {
    "upscale_delay_s": 2,
    "downscale_delay_s": 4,
    "metrics_interval_s": 1,
    "look_back_period_s": 3,
}
BODY = {
    "model": "walks",
    "sequences": [random_frames(np.random.default_rng(5), 400).tolist()],
}


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("cluster")) as cluster_of_two:
        yield cluster_of_two


class Load:
    """Clients that send requests until the block ends, and count the status codes or the
    names of exceptions."""

    def __init__(self, url, clients):
        self.answers = [Counter() for _ in range(clients)]
        self._url, self._stop = url, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self):
        limits = httpx.Limits(max_connections=len(self.answers))
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            await asyncio.gather(*(self._send(client, a) for a in self.answers))

    async def _send(self, client, answers):
        while not self._stop.is_set():
            try:
                response = await client.post(self._url + "/classify", json=BODY)
                answers[response.status_code] += 1
            except httpx.TransportError as error:
                answers[type(error).__name__] += 1

    @property
    def total(self):
        return sum(self.answers, Counter())

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(SECONDS)


def test_grows_and_shrinks(ray, bundles, tmp_path):
    """Under load it scales from one replica to three, on both nodes, and back to one; no
    request fails."""
    scaling = {"target_ongoing_requests": 4} | FAST_SCALING
    with deployed(ray, tmp_path, bundles=str(bundles), autoscaling=scaling) as url:
        assert len(ray.replicas()) == 1
        with Load(url, 24) as load:
            wait(lambda: len(ray.replicas()) == 3, "three replicas run", SECONDS)
            assert len({replica["node_id"] for replica in ray.replicas()}) == 2
            before = load.total[200]
            wait(lambda: load.total[200] > before + 500, "they answer")
        print(load.total)
        assert load.total.keys() == {200}
        with Load(url, 1) as load:
            wait(lambda: len(ray.replicas()) == 1, "one replica runs", SECONDS)
        print(load.total)
        assert load.total.keys() == {200}


def test_replica_dies(ray, bundles, tmp_path):
    """If a replica dies, each client loses at most its request under way. Sequences with a
    token continue at another replica, and the dead one is replaced."""
    rng = np.random.default_rng(7)
    frames = random_frames(rng, 60)
    settings = {"bundles": str(bundles), "state_key": KEY}
    two = {"min_replicas": 2, "max_replicas": 2}
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(deployed(ray, tmp_path, autoscaling=two, **settings))
        wait(lambda: len(ray.replicas()) == 2, "two replicas run", SECONDS)
        client = stack.enter_context(Client(url))
        (whole,) = client.label([frames], model="tags").predictions
        stream = stack.enter_context(client.stream("tags", resume=True))
        parts, state, failures = np.split(frames, 30), None, 0
        from_requests, from_stream = [], []
        before = {replica["actor_id"] for replica in ray.replicas()}
        with Load(url, 16) as load:
            wait(lambda: load.total[200] > 100, "they answer")
            for place, part in enumerate(parts):
                if place == 10:
                    os.kill(ray.replicas()[0]["pid"], signal.SIGKILL)
                from_stream.extend(stream.send(part).probabilities)
                while True:
                    try:
                        answer = client.label(
                            [part], model="tags", states=[state], return_state=True
                        )
                        break
                    except RequestError as error:
                        if error.status not in (500, 503) or failures == 4:
                            raise
                        failures += 1  # its request was under way
                (prediction,) = answer.predictions
                state = prediction.state
                from_requests.extend(prediction.probabilities)
                time.sleep(0.1)
            wait(
                lambda: (
                    len(now := {replica["actor_id"] for replica in ray.replicas()}) == 2
                    and now != before
                ),
                "it is replaced",
                SECONDS,
            )
            after = load.total[200]
            wait(lambda: load.total[200] > after + 200, "they answer")
        print(load.total, f"{failures} of the resumable calls sent twice")
        np.testing.assert_allclose(from_requests, whole.probabilities, **CLOSE)
        np.testing.assert_allclose(from_stream, whole.probabilities, **CLOSE)
        lost = [sum(a.values()) - a[200] for a in load.answers]
        assert max(lost) <= 1, load.answers
        assert load.total.keys() <= {200, 500, 503}


def test_drained(ray, bundles, tmp_path):
    """A stream whose replica is drained continues at another one. The settings need no
    key: the replicas of a deployment share a random one."""
    frames = random_frames(np.random.default_rng(8), 120)
    settings = {"bundles": str(bundles), "stream_seconds": "3"}
    two = {"min_replicas": 2, "max_replicas": 2}
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(deployed(ray, tmp_path, autoscaling=two, **settings))
        wait(lambda: len(ray.replicas()) == 2, "two replicas run", SECONDS)
        client = stack.enter_context(Client(url))
        (whole,) = client.label([frames], model="tags").predictions
        streams = [
            stack.enter_context(client.stream("tags", resume=False)) for _ in range(4)
        ]
        rows = [[] for _ in streams]
        for place, part in enumerate(np.split(frames, 60)):
            for stream, answers in zip(streams, rows, strict=True):
                answers.extend(stream.send(part).probabilities)
            time.sleep(0.1)
            if place == 20:
                fewer = {"min_replicas": 1, "max_replicas": 1}
                ray.redeploy(tmp_path, autoscaling=fewer)
        wait(lambda: len(ray.replicas()) == 1, "one replica runs", SECONDS)
        for answers in rows:
            np.testing.assert_allclose(answers, whole.probabilities, **CLOSE)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"port": "1"}, "proxy; see http_options"),
        ({"precision": "int3"}, "UNROLLED_PRECISION: Input should be"),
        ({"bundels": "/nowhere"}, "UNROLLED_BUNDELS"),
    ],
)
def test_refused(ray, tmp_path, settings, reason):
    """`serve status` reports a wrong setting."""
    with (
        pytest.raises(AssertionError, match=reason),
        deployed(ray, tmp_path, **settings),
    ):
        pass
    ray.serve("shutdown", "-y")


def test_broken_bundle(ray, bundles, tmp_path):
    """So it does a broken bundle, and its replica gets no requests."""
    folder = tmp_path / "bundles" / "walks" / "1"
    copy_bundle(bundles / "walks" / "1", folder)
    (folder / "saved_model.pb").write_bytes(b"no network")
    reason = r"saved_model\.pb: SHA-256 differs"
    with (
        pytest.raises(AssertionError, match=reason),
        deployed(ray, tmp_path, bundles=str(tmp_path / "bundles")),
    ):
        pass
    ray.serve("shutdown", "-y")


def test_object_store(ray, bundles, tmp_path):
    """Bundles and new versions are read from any URI of PyArrow's."""
    remote = tmp_path / "remote"
    copy_bundle(bundles / "walks" / "1", remote / "walks" / "1")
    settings = {"bundles": remote.as_uri(), "reload_seconds": "0.2"}
    with deployed(ray, tmp_path, **settings) as url:

        def version():
            (model,) = httpx.get(url + "/models").json()["models"]
            return model["version"]

        assert version() == "1"
        copy_bundle(bundles / "walks" / "1", remote / "walks" / "2", version="2")
        wait(lambda: version() == "2", "the new version is served")


def test_bulk(ray, bundles, tmp_path):
    """A file is computed on both nodes. After a run was killed, the next one computes the
    missing shards."""
    rng = np.random.default_rng(9)
    file, to = tmp_path / "many.jsonl", tmp_path / "output"
    with file.open("w") as out:
        for number in range(3_000):
            frames = random_frames(rng, int(rng.integers(300, 700)))
            out.write(json.dumps({"id": number, "frames": frames.tolist()}) + "\n")
    flags = ["--engine", "ray", "--model", "walks", "--bundles", bundles, "--to", to]
    command = [sys.executable, "-m", "service", "classify", file, *map(str, flags)]
    options = {
        "env": ray.environment | {"RAY_ADDRESS": ray.address},
        "cwd": ROOT,
        "stdout": subprocess.PIPE,
    }

    def written():
        return {path.name: path.stat().st_mtime_ns for path in to.glob("0*.jsonl")}

    with subprocess.Popen(command, **options) as first:
        wait(written, "a shard is written", SECONDS)
        first.kill()
    time.sleep(2)  # for actors without a driver to end
    before = written()
    second = subprocess.run(command, timeout=SECONDS, check=True, **options)
    summary = json.loads(second.stdout)
    assert 0 < len(before) < summary["shards"]
    assert summary["computed"] == summary["shards"] - len(before)
    after = written()
    assert {name: after[name] for name in before} == before
    lines = [
        json.loads(line)
        for path in sorted(to.glob("0*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert [line["id"] for line in lines] == list(range(3_000))
    assert not any("error" in line for line in lines)
