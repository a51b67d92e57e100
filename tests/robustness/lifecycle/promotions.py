"""Row C9: better and worse versions are published while clients send without a pause."""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np

from model.bundle import bundle, folders, labels
from model.datasets.dataset import Dataset
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import Service, serving
from tests.support import exports
from tests.support.bundles import cached
from tests.support.networks import make_dataset

NAME = "promoted"
NOISE = (0.6, 0.35, 0.15, 0.07, 0.025, 0.0)  # of the weights: each network is better
FIRST = 1  # the level of the first version
RELOAD_SECONDS = 0.1
SECONDS = 20.0  # within which a promoted version is served
CLIENTS = 4
RESTART = 20  # after so many versions the first one is promoted again


@row("C9", "Better and worse versions, promoted under load", full=100, fast=10)
def promotions(tally: Tally, amount: int) -> None:
    """A better version takes over, a worse one is never served, and no request fails."""
    levels = Levels()
    for worse, better in zip(levels.wrong, levels.wrong[1:], strict=False):
        assert levels.difference(worse, better).high < 0
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        shipped, trained = Path(folder) / "shipped", Path(folder) / "trained"
        settings = {
            "bundles": f"{shipped},{trained}",
            "workers": 2,
            "reload_seconds": RELOAD_SECONDS,
        }
        exports.publish_copy(levels.folders[FIRST], shipped, NAME)
        with (
            mock.patch.object(folders, "DEFAULTS", (shipped, trained)),
            serving(tally, **settings) as service,
            Clients(service, levels).sending() as clients,
        ):
            run = Run(tally, levels, trained, clients, {1: FIRST}, FIRST)
            for number in range(amount):
                if number % RESTART == RESTART - 1:
                    run.promote_first()
                # The first is worse: there are no labels yet that would hold it back.
                better = number > 0 and random.uniform() < 0.5
                run.publish(_choose(random, run.level, better))
        clients.check(tally, run.level_of, run.refused)
    tally.figure("versions", amount)
    tally.figure("not served", len(run.refused))
    tally.figure("requests", len(clients.answers))
    tally.figure("slowest takeover s", max(run.seconds, default=0.0))


def _choose(random: np.random.Generator, level: int, better: bool) -> int:
    """The level of the next network: above that of the present one, or below."""
    if better or level == 0:
        return min(level + 1, len(NOISE) - 1)
    return int(random.integers(0, level))


class Levels:
    """Networks from worse to better, the data to compare them on, and their answers."""

    def __init__(self) -> None:
        # Imported here: most rows need no TensorFlow.
        from model.evaluation import comparison, evaluation
        from model.export import promotion
        from model.network import reload

        root = cached("levels", _write, Path(__file__), Path(exports.__file__))
        self.folders = [root / f"level-{n}" / "1" for n in range(len(NOISE))]
        self.dataset = _dataset().part("test")
        self._difference, self.decide = comparison.difference, promotion.decide
        predictions = [
            evaluation.predict_bundle(bundle.read(folder), self.dataset).scores
            for folder in self.folders
        ]
        targets = predictions[-1].argmax(1)
        self.dataset = replace(self.dataset, targets=targets)
        self.wrong = [scores.argmax(1) != targets for scores in predictions]
        rows = range(0, len(self.dataset), len(self.dataset) // 8)
        self.sequences = [self.dataset.sequence(n).round(3) for n in rows]
        self.expected = []  # by level: probabilities of the sequences [S, C]
        for folder in self.folders:
            step = reload.onnx(folder / bundle.NETWORK)
            size = bundle.read(folder).metadata.state_size
            state = np.zeros((len(self.sequences), size), np.float32)
            answers, _ = step(*evaluation.pad(self.sequences), state)
            self.expected.append(answers)

    def difference(self, present: np.ndarray, new: np.ndarray) -> Any:
        return self._difference(present, new, np.arange(len(present)))


def _dataset() -> Dataset:
    return make_dataset(counts=(30, 30, 400), spread=2.0, classes=4)


def _write(root: Path) -> None:
    """Export a network with more and more noise taken from its weights."""
    from model.evaluation import evaluation
    from model.export import publish

    network, _, config = exports.make_network_and_data("classify-gru")
    kernel, bias = network.head.get_weights()
    logits = evaluation.predict(_dataset(), network).scores
    network.head.set_weights([kernel, bias - logits.mean(0)])  # predicts all classes
    weights = [variable.numpy() for variable in network.trainable_variables]
    for level, noise in enumerate(NOISE):
        random = np.random.default_rng(1)
        for variable, value in zip(network.trainable_variables, weights, strict=True):
            variable.assign(value + random.normal(0, noise * 0.6, value.shape))
        named = config.update({"name": f"level-{level}"})
        publish.publish(network, exports.HISTORY, _dataset(), named, root)


@dataclass
class Run:
    """The versions that were published so far."""

    tally: Tally
    levels: Levels
    root: Path
    clients: "Clients"
    level_of: dict[int, int]  # by version
    level: int  # of the default version
    refused: set[int] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)

    def publish(self, level: int) -> None:
        """Publish and compare a network as `unrolled train` does."""
        folder = exports.publish_copy(self.levels.folders[level], self.root, NAME)
        version = int(folder.name)
        self.level_of[version] = level
        result = self.levels.decide(folder, self.levels.dataset, "better")
        assert result is not None
        right = result.promoted == (level > self.level)
        self.tally.check(right, f"level {level} after {self.level}: {result.reason}")
        if result.promoted:
            self.level = level
            self._wait_served(version)
            return
        self.refused.add(version)
        time.sleep(5 * RELOAD_SECONDS)  # for the service to load it, if it would
        status = self.clients.status(f"{NAME}@{version}")
        self.tally.check(status == 404, f"version {version} is there: {status}")

    def promote_first(self) -> None:
        """Go back to the first version, as `unrolled promote` does."""
        labels.promote(folders.of_name(NAME, self.root), 1)
        self.level = self.level_of[1]
        self._wait_served(1)

    def _wait_served(self, version: int) -> None:
        start = time.monotonic()
        served = False
        while not served and time.monotonic() < start + SECONDS:
            served = self.clients.version() == version
            time.sleep(0.01)
        self.tally.check(served, f"version {version} does not take over")
        self.seconds.append(time.monotonic() - start)


@dataclass
class Clients:
    """Clients that send one sequence after another, and keep what they receive."""

    service: Service
    levels: Levels
    answers: list[tuple[int, int, Any]] = field(default_factory=list)

    @contextmanager
    def sending(self) -> Iterator["Clients"]:
        """Send until the block ends."""
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._send, args=(stop, number))
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            stop.set()
            for thread in threads:
                thread.join(SECONDS)

    def _send(self, stop: threading.Event, place: int) -> None:
        with httpx.Client(base_url=self.service.url, timeout=SECONDS) as http:
            while not stop.is_set():
                place = (place + 1) % len(self.levels.sequences)
                frames = self.levels.sequences[place].tolist()
                try:
                    response = http.post("/classify", json=_request(frames))
                    answer = (response.status_code, place, response.json())
                except (httpx.HTTPError, ValueError) as error:
                    answer = (0, place, repr(error))
                self.answers.append(answer)

    def status(self, model: str) -> int:
        body = _request(self.levels.sequences[0].tolist()) | {"model": model}
        return httpx.post(f"{self.service.url}/classify", json=body).status_code

    def version(self) -> int:
        return int(self.service.get(f"/models/{NAME}").json()["version"])

    def check(self, tally: Tally, level_of: dict[int, int], refused: set[int]) -> None:
        """Each response is that of the network of its version, which was promoted."""
        for status, place, body in self.answers:
            if not tally.check(status == 200, f"{status}: {body}"):
                continue
            version = int(body["version"])
            tally.check(version not in refused, f"the worse version {version} answers")
            (prediction,) = body["predictions"]
            expected = self.levels.expected[level_of[version]][place]
            error = np.abs(np.array(prediction["probabilities"]) - expected).max()
            tally.check(error < 1e-5, f"version {version} answers as another network")


def _request(frames: list[list[float]]) -> dict[str, Any]:
    return {"model": NAME, "sequences": [frames]}
