"""Versions and labels that come and go while the service runs."""

import itertools
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from model.bundle import bundle
from model.bundle.golden import Golden
from service.registry import folder as repository
from service.settings import Settings
from tests.support.bundles import make_metadata
from tests.support.scheduler import FakeEngine, metadata_of, write_bundle
from tests.support.servers import SECONDS, Running, running, wait
from tests.support.streams import KEY, NdjsonStream, WebSocketStream

GOOD = {"sequences": [[[7]]]}
INFER = {
    "inputs": [{"name": "frames", "datatype": "FP32", "shape": [1, 1, 1], "data": [7]}]
}
PREDICT = {"instances": [[[7]]]}
POISON = 666  # weights that no engine can load
_numbers = itertools.count()


class Weighted(FakeEngine):
    """Adds the weights of its bundle to each probability: tells which it is."""

    def __init__(self, found, settings):
        super().__init__(found.metadata.task)
        self.weights = weights = found.metadata.training.seed
        if weights == POISON:
            raise RuntimeError("poison")
        self.hook = lambda call, answer: answer + np.float32(weights)


def put(root, version, *, weights=None, name="made", at=None, features=1, spoil=None):
    """A bundle with weights (else those of its number), which appears whole.

    Args:
        at: number of its folder, if that is another.
        spoil: changes the folder before it appears.
    """
    made = root.parent / f"new-{next(_numbers)}"
    write_bundle(made)
    weights = version if weights is None else weights
    golden = Golden.read((made / bundle.GOLDEN).read_bytes())
    right = golden.probabilities + np.float32(weights)
    frames = golden.frames.repeat(features, 2)
    Golden(frames, golden.lengths, right, golden.state).save(made / bundle.GOLDEN)
    metadata = metadata_of("classify", "lanes")
    more = make_metadata(features=features)
    training = metadata.training.model_copy(update={"seed": weights})
    about = {
        "name": name,
        "version": str(version),
        "training": training,
        "input": more.input,
        "normalisation": more.normalisation,
    }
    bundle.seal(made, metadata.model_copy(update=about))
    if spoil is not None:
        spoil(made)
    folder = root / "made" / str(at or version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        os.rename(folder, root.parent / f"old-{next(_numbers)}")
    os.rename(made, folder)
    return folder


@dataclass(frozen=True)
class Shop(Running):
    """The service over a folder whose versions come and go."""

    root: Path
    engines: list[weakref.ref[Weighted]]
    looks: list[int]
    gate: threading.Event  # while it is closed nothing is loaded
    hooks: list[Callable[[], object]]  # called before each look
    tries: list[str]  # versions that were loaded, or are

    def put(self, version, **options):
        return put(self.root, version, **options)

    def remove(self, *versions):
        for version in versions:
            shutil.rmtree(self.root / "made" / str(version))

    def label(self, content):
        """Other labels, which appear whole."""
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        new = self.root.parent / "labels"
        new.write_bytes(text)
        os.rename(new, self.root / "made" / repository.LABELS)

    def look(self):
        """Return when the folder has been looked through, often enough to try what
        is new."""
        before = len(self.looks)
        wait(lambda: len(self.looks) >= before + 4, "it has looked")

    def ask(self, model="made", http=None):
        """The version that answers, held to be right: its weights are in it."""
        response = (http or self.http).post("/classify", json=GOOD | {"model": model})
        assert response.status_code == 200, response.text
        body = response.json()
        return body["version"], weights_of(body["predictions"][0]["probabilities"])

    def assert_served(self, version, model="made", weights=None):
        assert self.ask(model) == (str(version), weights or version)

    def wait_served(self, version, model="made", weights=None):
        expected = (str(version), weights or version)
        if "@" in model:  # else it is served all the time
            wait(lambda: self.status(model) != 404, f"{model} is there")
        wait(lambda: self.ask(model) == expected, f"{expected} is served")

    def status(self, model):
        return self.http.post("/classify", json=GOOD | {"model": model}).status_code

    def wait_status(self, model, status):
        wait(lambda: self.status(model) == status, f"{model} is answered so")

    def wait_gone(self, model):
        self.wait_status(model, 404)

    def about(self, model="made"):
        return self.http.get(f"/models/{model}").json()

    @property
    def versions(self):
        return self.http.get("/v2/models/made").json()["versions"]

    @property
    def broken(self):
        return self.http.get("/models").json()["broken"]

    @property
    def loads(self):
        """Engines made so far."""
        return len(self.engines)

    @property
    def alive(self):
        """The weights of the engines that some worker has."""
        found = [engine() for engine in list(self.engines)]
        return sorted(one.weights for one in found if one is not None)


def weights_of(probabilities):
    """The weights in an answer to one step of 7."""
    weights = round(probabilities[0]) - 1
    assert probabilities == [1 + weights, 7 + weights, 7 + weights]
    return weights


@contextmanager
def shop(folder, *versions, root=None, labels=None, start=None, **settings):
    """The service with these versions of `made`, until the block ends."""
    root = folder / "bundles" if root is None else root
    for version in versions:
        put(root, version)
    if labels is not None:
        (root / "made" / repository.LABELS).write_text(json.dumps(labels))
    engines, looks, gate, hooks, tries = [], [], threading.Event(), [], []
    gate.set()

    def make(found, settings):
        tries.append(found.metadata.version)
        assert gate.wait(SECONDS)
        engine = Weighted(found, settings)
        engines.append(weakref.ref(engine))
        return engine

    def scan(folder, scan=repository.scan):
        if folder == root:  # else of another service
            looks.append(1)
            for hook in hooks:
                hook()
        return scan(folder)

    given = {
        "port": 0,
        "bundles": root,
        "workers": 1,
        "reload_seconds": 0.02,
        "state_key": KEY,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository, "scan", scan)
        try:
            with running(Settings(**given | settings), load_engine=make) as made:
                parts = (made.url, made.app, made.server, made.http)
                yield Shop(*parts, root, engines, looks, gate, hooks, tries)
        finally:
            gate.set()


# --- what a name means -----------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Three versions: the first is the default, the last has no label."""
    labels = {"default": 1, "stable": 1, "canary": 2}
    with shop(tmp_path_factory.mktemp("labelled"), 1, 2, 3, labels=labels) as made:
        yield made


def meant(reference, version):
    return pytest.param(reference, version, id=reference)


MEANT = [
    meant("made", 1),
    meant("made@1", 1),
    meant("made@2", 2),
    meant("made@3", 3),
    meant("made@latest", 3),
    meant("made@stable", 1),
    meant("made@canary", 2),
    meant("made@default", 1),
]
NOBODY = [
    "made@4",
    "made@nobody",
    "made@",
    "made@@1",
    "made@1@2",
    "made@01",
    "made@Stable",
    "made@ 1",
    "made@1.0",
    "@1",
    "other@1",
    "bundles",
]
PATHS = [
    pytest.param("made/versions/2", 2, id="version"),
    pytest.param("made/versions/002", 2, id="version-with-zeros"),
    pytest.param("made/labels/canary", 2, id="label"),
    pytest.param("made/labels/latest", 3, id="latest"),
    pytest.param("made/labels/default", 1, id="default"),
]


class TestMeant:
    @pytest.mark.parametrize(("reference", "version"), MEANT)
    def test_everywhere(self, labelled, reference, version):
        """A name, a version or a label means one version wherever a model is named:
        in /classify, /models, both streams, /v2 and /v1."""
        labelled.assert_served(version, reference)
        http = labelled.http
        about = http.get(f"/models/{reference}").json()
        assert (about["name"], about["version"]) == ("made", str(version))
        for kind in (WebSocketStream, NdjsonStream):
            with kind(labelled.url, f"model={reference}") as talk:
                assert weights_of(talk.ask([[7]])["probabilities"]) == version
        self.assert_path(labelled, f"/v2/models/{reference}", version)
        self.assert_path(labelled, f"/v1/models/{reference}", version)

    @pytest.mark.parametrize(("path", "version"), PATHS)
    def test_paths(self, labelled, path, version):
        """A version may stand in a path of /v1 and /v2, a label in one of /v1."""
        self.assert_path(labelled, f"/v1/models/{path}", version)
        if "labels" not in path:
            self.assert_path(labelled, f"/v2/models/{path}", version)

    @pytest.mark.parametrize("reference", NOBODY)
    def test_nobody(self, labelled, reference):
        """What means no version is refused alike everywhere, and what there is of a
        name is told."""
        http = labelled.http
        answers = [
            http.post("/classify", json=GOOD | {"model": reference}),
            http.get(f"/models/{reference}"),
            http.post(f"/stream?model={reference}", content=b""),
            http.post(f"/v2/models/{reference}/infer", json=INFER),
            http.get(f"/v2/models/{reference}/ready"),
            http.post(f"/v1/models/{reference}:predict", json=PREDICT),
            http.get(f"/v1/models/{reference}"),
        ]
        assert [one.status_code for one in answers] == [404] * len(answers)
        if reference.startswith("made"):
            told = answers[0].json()["detail"]
            for known in ("1, 2, 3", "latest", "stable", "canary", "default"):
                assert known in told

    def test_all_are_told(self, labelled):
        """The versions that are served are told, by /v1 the newest first."""
        assert labelled.versions == ["1", "2", "3"]
        told = labelled.http.get("/v1/models/made").json()["model_version_status"]
        assert [one["version"] for one in told] == ["3", "2", "1"]
        (model,) = labelled.http.get("/models").json()["models"]
        assert (model["version"], model["default"]) == ("1", True)

    def assert_path(self, service, path, version):
        http = service.http
        if path.startswith("/v1"):
            body = http.post(f"{path}:predict", json=PREDICT).json()
            assert weights_of(body["predictions"][0]) == version
            spec = http.get(f"{path}/metadata").json()["model_spec"]
            assert spec["version"] == str(version)
            told = http.get(path).json()["model_version_status"]
            assert str(version) in [one["version"] for one in told]
        else:
            body = http.post(f"{path}/infer", json=INFER).json()
            assert body["model_version"] == str(version)
            assert weights_of(body["outputs"][0]["data"]) == version
            (stats,) = http.get(f"{path}/stats").json()["model_stats"]
            assert stats["version"] == str(version)
            assert http.get(f"{path}/ready").status_code == 200
            assert http.get(path).json()["versions"] == ["1", "2", "3"]


class TestLabels:
    def test_change(self, tmp_path):
        """Labels are taken up as they change: a version is served as long as it has
        one, and `default` holds back the newest."""
        with shop(tmp_path, 1, 2) as made:
            assert made.versions == ["2"]
            made.label({"stable": 1})
            made.wait_served(1, "made@stable")
            made.assert_served(2)
            made.label({"stable": 2, "default": 1, "old": 1})
            made.wait_served(1)
            made.assert_served(2, "made@stable")
            made.put(3)
            made.wait_served(3, "made@latest")
            made.assert_served(1)
            assert made.versions == ["1", "2", "3"]
            (made.root / "made" / repository.LABELS).unlink()
            made.wait_gone("made@stable")
            made.assert_served(3)
            assert made.versions == ["3"]

    @pytest.mark.parametrize("content", [b"{", b"[]", {"stable": 9}, {"latest": 1}])
    def test_broken(self, tmp_path, content):
        """Labels that are broken keep those from before, which is told; new versions
        are taken up meanwhile, and mended labels are."""
        with shop(tmp_path, 1, 2, labels={"stable": 1}) as made:
            made.label(content)
            wait(lambda: made.broken, "it is told")
            ((name, reason),) = made.broken.items()
            assert name == "made/labels.json"
            assert str(made.root / "made" / "labels.json") in reason
            made.assert_served(1, "made@stable")
            assert made.http.get("/readyz").status_code == 200
            made.put(3)
            made.wait_served(3)
            made.assert_served(1, "made@stable")
            made.label({"stable": 3})
            made.wait_served(3, "made@stable")
            wait(lambda: not made.broken, "nothing is broken any more")
            made.wait_gone("made@1")

    def test_no_text(self, tmp_path):
        """So are labels that are no text."""
        with shop(tmp_path, 1, 2, labels={"stable": 1}) as made:
            made.label(b'{"\xff": 1}')
            made.look()
            assert list(made.broken) == ["made/labels.json"]

    def test_broken_holds_no_versions(self, tmp_path):
        """Versions that no label ever had do not pile up while labels are broken."""
        with shop(tmp_path, 1, labels={"stable": 1}) as made:
            made.label(b"{")
            for version in range(2, 6):
                made.put(version)
                made.wait_served(version)
            made.look()
            assert made.versions == ["1", "5"]


@pytest.mark.parametrize(
    ("keep", "at_first", "later"),
    [
        pytest.param(0, ["1", "2", "3"], ["1", "2", "3", "7"], id="all"),
        pytest.param(1, ["3"], ["7"], id="newest"),
        pytest.param(2, ["2", "3"], ["3", "7"], id="two"),
    ],
)
def test_keep_versions(tmp_path, keep, at_first, later):
    """As many of the newest versions are served as the setting says; what falls out
    is dropped, also from the workers."""
    with shop(tmp_path, 1, 2, 3, keep_versions=keep) as made:
        assert made.versions == at_first
        made.put(7)
        made.wait_served(7)
        wait(lambda: made.versions == later, "the oldest is dropped")
        for version in later:
            made.assert_served(int(version), f"made@{version}")
        wait(lambda: made.alive == [*map(int, later)], "the workers drop it")


# --- what changes on the disk ----------------------------------------------------


def flip(path):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def bend(folder):
    """Golden answers that its engine does not give, with fitting digests."""
    golden = Golden.read((folder / bundle.GOLDEN).read_bytes())
    wrong = golden.probabilities + np.float32(1)
    Golden(golden.frames, golden.lengths, wrong, golden.state).save(
        folder / bundle.GOLDEN
    )
    text = (folder / bundle.MARKER).read_text()
    bundle.seal(folder, bundle.Metadata.model_validate_json(text))


def broken(id, said, **options):
    return pytest.param(options, said, id=id)


BROKEN = [
    broken("flipped-byte", "SHA-256", spoil=lambda x: flip(x / bundle.GOLDEN)),
    broken("missing-file", "missing", spoil=lambda x: (x / bundle.GOLDEN).unlink()),
    broken("one-file-more", "more.py", spoil=lambda x: (x / "more.py").touch()),
    broken("no-marker", "bundle.json", spoil=lambda x: (x / bundle.MARKER).unlink()),
    broken("empty", "bundle.json", spoil=lambda x: shutil.rmtree(x / bundle.EXTRA)),
    broken("golden-answers", "golden", spoil=bend),
    broken("no-engine", "poison", weights=POISON),
    broken("another-number", "holds version 3", version=3, at=2),
    broken("another-name", "another version is named made", name="other"),
]


class TestTakenUp:
    def test_new(self, tmp_path):
        """A new version is loaded beside the old one, which answers until then; the
        old one is dropped."""
        with shop(tmp_path, 1) as made:
            made.gate.clear()
            made.put(2)
            wait(lambda: made.tries[-1] == "2", "it is tried")
            for _ in range(20):
                made.assert_served(1)
            assert made.versions == ["1"]
            assert made.http.get("/readyz").status_code == 200
            made.gate.set()
            made.wait_served(2)
            made.wait_gone("made@1")
            assert made.versions == ["2"]
            wait(lambda: made.alive == [2], "the workers drop it")

    def test_other_features(self, tmp_path):
        """A new version may take other features: requests are held to those of the
        version that answers."""
        with shop(tmp_path, 1, keep_versions=2) as made:
            made.put(2, features=2)
            made.wait_status("made", 422)
            body = {"sequences": [[[7, 7]]], "model": "made"}
            answer = made.http.post("/classify", json=body)
            assert answer.status_code == 200
            assert answer.json()["version"] == "2"
            made.assert_served(1, "made@1")

    def test_new_name(self, tmp_path):
        """So is a new name; which model is the default stays as it was."""
        with shop(tmp_path, 1) as made:
            folder = put(tmp_path / "else" / "bundles", 4, name="alpha")
            os.rename(folder.parent, made.root / "alpha")
            made.wait_served(4, "alpha@latest")
            made.assert_served(4, "alpha")
            body = made.http.post("/classify", json=GOOD).json()
            assert (body["model"], body["version"]) == ("made", "1")

    def test_only_at_the_start(self, tmp_path):
        """With `reload_seconds` of 0 the folder is looked through once."""
        with shop(tmp_path, 1, reload_seconds=0) as made:
            made.put(2)
            assert made.loads == 1
            made.assert_served(1)
            assert len(made.looks) == 1

    def test_rollback(self, tmp_path):
        """To go back to an older version the newest folder is taken away."""
        with shop(tmp_path, 1, 2) as made:
            made.remove(2)
            made.wait_served(1)
            made.wait_gone("made@2")
            wait(lambda: made.alive == [1], "the workers drop it")
            made.put(2, weights=22)
            made.wait_served(2, weights=22)

    @pytest.mark.parametrize(("options", "said"), BROKEN)
    def test_broken(self, tmp_path, options, said):
        """A new version that can't be loaded changes nothing of what is served; why
        is told; it is taken up once it is repaired."""
        with shop(tmp_path, 1) as made:
            options = {"version": 2} | options
            made.put(options.pop("version"), **options)
            wait(lambda: made.broken, "it is told")
            made.look()
            ((name, reason),) = made.broken.items()
            assert name == "made@2"
            assert said in reason
            assert str(made.root / "made" / "2") in reason
            assert made.http.get("/readyz").status_code == 200
            made.assert_served(1)
            assert made.versions == ["1"]
            assert made.status("made@2") == 503
            loads = made.loads
            made.look()
            assert made.loads == loads, "it is tried again and again"
            made.put(2)
            made.wait_served(2)
            assert made.broken == {}

    def test_broken_is_taken_away(self, tmp_path):
        """One that is taken away is told no more, nor is it where a later one is
        served."""
        with shop(tmp_path, 1) as made:
            made.put(2, weights=POISON)
            wait(lambda: made.broken, "it is told")
            made.remove(2)
            wait(lambda: not made.broken, "it is told no more")
            made.put(2, weights=POISON)
            wait(lambda: made.broken, "it is told")
            made.put(3)
            made.wait_served(3)
            wait(lambda: not made.broken, "it is told no more")
            made.wait_gone("made@1")

    def test_half_written(self, tmp_path):
        """A copy that is still being written is not tried before its files settle."""
        with shop(tmp_path, 1) as made:
            part = made.root / "made" / "2"
            whole = put(tmp_path / "else" / "bundles", 2)
            part.mkdir()
            loads, names = made.loads, map(str, itertools.count())
            made.hooks.append(lambda: (part / next(names)).touch())
            made.look()
            made.look()
            assert made.broken == {}
            assert made.loads == loads
            made.hooks.clear()
            made.look()
            shutil.rmtree(part)
            os.rename(whole, part)
            made.wait_served(2)

    def test_touched(self, tmp_path):
        """A bundle that is touched, or copied over itself, is not loaded again, and
        later changes are still seen."""
        with shop(tmp_path, 1) as made:
            folder, loads = made.root / "made" / "1", made.loads
            model = made.registry.get("made")
            for path in folder.rglob("*"):
                os.utime(path)
            made.look()
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            shutil.rmtree(folder)
            os.rename(copy, folder)
            made.look()
            assert made.loads == loads
            assert made.registry.get("made") is model
            made.put(1, weights=11)
            made.wait_served(1, weights=11)

    def test_replaced_in_place(self, tmp_path):
        """A bundle that is replaced under its number is served anew, by another
        digest, and the one before is dropped; its tokens are refused."""
        with shop(tmp_path, 1, 2, keep_versions=2) as made:
            token = begin(made, "made@1")
            digest = made.about("made@1")["digest"]
            made.put(1, weights=11)
            made.wait_served(1, "made@1", weights=11)
            made.assert_served(2)
            assert made.about("made@1")["digest"] != digest
            assert made.versions == ["1", "2"]
            wait(lambda: made.alive == [2, 11], "the workers drop it")
            assert go_on(made, "made@1", token).status_code == 409
            text = made.metrics()
            assert digest not in text
            assert 'unrolled_waiting_steps{model="made",version="1"}' in text

    @pytest.mark.parametrize("part", ["made", "made/1", ""])
    def test_vanished(self, tmp_path, part):
        """What vanishes from the disk is served on, and again looked after when it is
        back."""
        with shop(tmp_path, 1) as made:
            away, folder = tmp_path / "away", made.root / part
            os.rename(folder, away)
            made.look()
            made.assert_served(1)
            assert made.http.get("/readyz").status_code == 200
            os.rename(away, folder)
            made.put(2)
            made.wait_served(2)

    def test_broken_vanished(self, tmp_path):
        """A name of which nothing could be loaded is told no more when it is gone."""
        with shop(tmp_path, 1) as made:
            (made.root / "wrong" / "1").mkdir(parents=True)
            wait(lambda: made.broken, "it is told")
            shutil.rmtree(made.root / "wrong")
            made.look()
            assert made.broken == {}

    @pytest.mark.parametrize("skip", [True, False])
    def test_broken_at_the_start(self, tmp_path, skip):
        """At the start, too, a version with a label that is broken is told, and
        `skip_broken` alone lets the service be ready without it."""
        root = tmp_path / "bundles"
        put(root, 1, weights=POISON)
        put(root, 2)
        labels = {"stable": 1}
        given = {"root": root, "labels": labels, "skip_broken": skip}
        if skip:
            with shop(tmp_path, **given) as made:
                assert made.broken
        else:
            with pytest.raises(AssertionError), shop(tmp_path, **given):
                pass


# --- states and defaults ---------------------------------------------------------


def begin(made, model):
    """A token of one step of 7."""
    body = GOOD | {"model": model, "return_state": True}
    return made.http.post("/classify", json=body).json()["predictions"][0]["state"]


def go_on(made, model, token):
    body = GOOD | {"model": model, "states": [token]}
    return made.http.post("/classify", json=body)


def test_tokens(tmp_path):
    """A state token is of one version: refused by another, and good as long as its
    own is served, by whatever name."""
    with shop(tmp_path, 1, keep_versions=2) as made:
        token = begin(made, "made")
        made.put(2)
        made.wait_served(2)
        assert go_on(made, "made", token).status_code == 409
        assert go_on(made, "made@2", token).status_code == 409
        response = go_on(made, "made@1", token)
        assert response.status_code == 200
        answer = response.json()["predictions"][0]["probabilities"]
        assert answer == [2 + 1, 7 + 1, 7 + 2 * 7 + 1]
        made.put(3)
        made.wait_gone("made@1")
        response = go_on(made, "made", token)
        assert response.status_code == 409
        assert response.json()["type"] == "urn:unrolled:error:state-conflict"
        made.label({"old": 1})
        made.wait_served(1, "made@old")
        assert go_on(made, "made@old", token).status_code == 200


class TestDefault:
    @pytest.mark.parametrize("label", ["1", "stable"])
    def test_of_a_version(self, tmp_path, label):
        """The setting of a default may name a version or a label."""
        given = {"labels": {"stable": 1}, "default_classify": f"made@{label}"}
        with shop(tmp_path, 1, 2, **given) as made:
            for _ in range(2):
                body = made.http.post("/classify", json=GOOD).json()
                assert body["version"] == "1"
                made.put(3)
                made.wait_served(3)

    def test_stays(self, tmp_path):
        """The version that the setting names goes on to be served."""
        with shop(tmp_path, 1, default_classify="made@1") as made:
            made.put(2)
            made.wait_served(2)
            made.look()
            assert made.http.post("/classify", json=GOOD).status_code == 200


# --- told to ---------------------------------------------------------------------


def told(made, verb, name="made"):
    path = f"/v2/repository/models/{name}/{verb}"
    return made.http.post(path).status_code


def index(made):
    """Name, version and state of all that is there."""
    found = made.http.post("/v2/repository/index").json()
    return [(one["name"], one["version"], one["state"]) for one in found]


class TestRepository:
    """What an administrator asks for, while the service never looks by itself."""

    @pytest.fixture
    def made(self, tmp_path):
        with shop(tmp_path, 1, admin=True, reload_seconds=0) as made:
            yield made

    def test_load(self, made):
        """A new version is taken up at once when a load is asked for."""
        made.put(2)
        made.assert_served(1)
        assert told(made, "load") == 200
        made.assert_served(2)
        assert index(made) == [("made", "2", "READY")]

    def test_unload(self, made):
        """A name that is unloaded is served no more, whatever lies in its folder,
        until it is loaded again; the service stays ready."""
        assert told(made, "unload") == 200
        assert made.status("made") == made.status("made@1") == 404
        assert made.http.get("/models").json() == {"models": [], "broken": {}}
        assert made.http.get("/readyz").status_code == 200
        assert index(made) == [("made", "", "UNAVAILABLE")]
        assert told(made, "unload") == 404
        made.put(2)
        assert told(made, "load") == 200
        made.assert_served(2)
        assert index(made) == [("made", "2", "READY")]
        wait(lambda: made.alive == [2], "the workers drop it")

    def test_unload_frees(self, made):
        """What is unloaded takes no memory of the workers."""
        assert told(made, "unload") == 200
        wait(lambda: made.alive == [], "the workers drop it", seconds=1)

    def test_unload_stays(self, tmp_path):
        """Nor does the service take it up by itself."""
        with shop(tmp_path, 1, admin=True) as made:
            assert told(made, "unload") == 200
            made.put(2)
            made.look()
            assert made.status("made") == 404

    def test_broken(self, made):
        """A load of what is broken is refused with the reason, changes nothing, and
        is told by the index; repaired, it is loaded."""
        made.put(2, weights=POISON)
        response = made.http.post("/v2/repository/models/made/load")
        assert response.status_code == 503
        assert "poison" in response.json()["error"]
        made.assert_served(1)
        assert index(made) == [("made", "1", "READY"), ("made", "2", "UNAVAILABLE")]
        made.put(2)
        assert told(made, "load") == 200
        made.assert_served(2)
        assert index(made) == [("made", "2", "READY")]

    def test_unknown(self, made):
        """There is nothing to load or unload of a name that is not there."""
        for name in ("nobody", "made@1", "1"):
            assert told(made, "load", name) == 404
            assert told(made, "unload", name) == 404

    def test_broken_unloaded(self, made):
        """A broken version that is taken away while its name is unloaded does not
        hold up its load."""
        made.put(2, weights=POISON)
        assert told(made, "load") == 503
        assert told(made, "unload") == 200
        made.remove(2)
        assert told(made, "load") == 200
        assert made.broken == {}

    def test_another_folder(self, tmp_path):
        """A model is unloaded by the name that it is served by."""
        root = tmp_path / "bundles"
        put(root, 1, name="other")
        given = {"root": root, "admin": True, "reload_seconds": 0}
        with shop(tmp_path, **given) as made:
            made.assert_served(1, "other")
            assert told(made, "unload", "other") == 200
