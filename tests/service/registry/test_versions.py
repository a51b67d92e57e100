"""Versions and labels: which of them a reference means, and which are served."""

import os

import pytest

from model.bundle import bundle
from model.bundle.labels import LABELS
from tests.support.servers import wait
from tests.support.streams import NdjsonStream, WebSocketStream
from tests.support.versions import (
    GOOD,
    INFER,
    PREDICT,
    flip,
    put,
    versioned_service,
    weights_of,
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Three versions, of which the first is the default."""
    labels = {"default": 1, "stable": 1, "next": 2, "new": 3}
    folder = tmp_path_factory.mktemp("labelled")
    with versioned_service(folder, 1, 2, 3, labels=labels) as service:
        yield service


def assert_path(service, path, version):
    """Check the version that answers at a path of /v1 or /v2."""
    http = service.http
    if path.startswith("/v1"):
        body = http.post(f"{path}:predict", json=PREDICT).json()
        assert weights_of(body["predictions"][0]) == version
        spec = http.get(f"{path}/metadata").json()["model_spec"]
        assert spec["version"] == str(version)
        statuses = http.get(path).json()["model_version_status"]
        assert str(version) in [status["version"] for status in statuses]
    else:
        body = http.post(f"{path}/infer", json=INFER).json()
        assert body["model_version"] == str(version)
        assert weights_of(body["outputs"][0]["data"]) == version
        (stats,) = http.get(f"{path}/stats").json()["model_stats"]
        assert stats["version"] == str(version)
        assert http.get(f"{path}/ready").status_code == 200
        assert http.get(path).json()["versions"] == ["1", "2", "3"]


class TestReferences:
    def test_everywhere(self, labelled):
        """A name, a version or a label means the same version wherever a model is named:
        in /classify, /models, both streams, /v2 and /v1."""
        for reference, version in (
            ("made", 1),
            ("made@1", 1),
            ("made@2", 2),
            ("made@3", 3),
            ("made@latest", 3),
            ("made@stable", 1),
            ("made@next", 2),
            ("made@default", 1),
        ):
            labelled.assert_served(version, reference)
            about = labelled.about(reference)
            assert (about["name"], about["version"]) == ("made", str(version))
            for kind in (WebSocketStream, NdjsonStream):
                with kind(labelled.url, f"model={reference}") as stream:
                    assert weights_of(stream.ask([[7]])["probabilities"]) == version
            assert_path(labelled, f"/v2/models/{reference}", version)
            assert_path(labelled, f"/v1/models/{reference}", version)

    def test_paths(self, labelled):
        """A version may stand in a path of /v1 and /v2, a label in one of /v1."""
        for path, version in (
            ("made/versions/2", 2),
            ("made/versions/002", 2),
            ("made/labels/next", 2),
            ("made/labels/latest", 3),
            ("made/labels/default", 1),
        ):
            assert_path(labelled, f"/v1/models/{path}", version)
            if "labels" not in path:
                assert_path(labelled, f"/v2/models/{path}", version)

    def test_unknown(self, labelled):
        """A reference to no version is 404 everywhere; the error lists the existing
        versions and labels of the name."""
        http = labelled.http
        for reference in (
            *("made@4", "made@nobody", "made@", "made@@1", "made@1@2", "made@01"),
            *("made@Stable", "made@ 1", "made@1.0", "@1", "other@1", "bundles"),
        ):
            responses = [
                http.post("/classify", json=GOOD | {"model": reference}),
                http.get(f"/models/{reference}"),
                http.post(f"/stream?model={reference}", content=b""),
                http.post(f"/v2/models/{reference}/infer", json=INFER),
                http.get(f"/v2/models/{reference}/ready"),
                http.post(f"/v1/models/{reference}:predict", json=PREDICT),
                http.get(f"/v1/models/{reference}"),
            ]
            statuses = [response.status_code for response in responses]
            assert statuses == [404] * len(responses)
            if reference.startswith("made"):
                detail = responses[0].json()["detail"]
                for known in ("1, 2, 3", "latest", "stable", "next", "default"):
                    assert known in detail

    def test_lists(self, labelled):
        """All protocols list the versions, /v1 the newest first."""
        assert labelled.versions == ["1", "2", "3"]
        response = labelled.http.get("/v1/models/made")
        statuses = response.json()["model_version_status"]
        assert [status["version"] for status in statuses] == ["3", "2", "1"]
        (model,) = labelled.http.get("/models").json()["models"]
        assert (model["version"], model["default"]) == ("1", True)


@pytest.mark.slow
class TestLabels:
    def test_change(self, tmp_path):
        """Changed labels take effect: a version is served as long as it has one, and a
        version newer than `default` only if it has one."""
        with versioned_service(tmp_path, 1, 2) as service:
            assert service.versions == ["2"]
            service.label({"stable": 1})
            service.wait_served(1, "made@stable")
            service.assert_served(2)
            service.label({"stable": 2, "default": 1, "old": 1})
            service.wait_served(1)
            service.assert_served(2, "made@stable")
            service.put(3)
            service.wait_scanned()
            service.assert_served(1)
            service.assert_served(2, "made@latest")
            assert service.versions == ["1", "2"]
            assert service.status("made@3") == 404
            service.label({"stable": 2, "default": 1, "next": 3})
            service.wait_served(3, "made@latest")
            service.assert_served(1)
            assert service.versions == ["1", "2", "3"]
            (service.root / "made" / LABELS).unlink()
            service.wait_status("made@stable", 404)
            service.assert_served(3)
            assert service.versions == ["3"]

    @pytest.mark.parametrize("content", [b"{", b'{"\xff": 1}', {"stable": 9}])
    def test_broken(self, tmp_path, content):
        """Broken labels are reported, and the former ones stay; new versions are loaded
        meanwhile, and repaired labels take effect."""
        with versioned_service(tmp_path, 1, 2, labels={"stable": 1}) as service:
            service.label(content)
            wait(lambda: service.broken, "it is reported")
            ((name, reason),) = service.broken.items()
            assert name == "made/labels.json"
            assert str(service.root / "made" / "labels.json") in reason
            service.assert_served(1, "made@stable")
            assert service.http.get("/readyz").status_code == 200
            service.put(3)
            service.wait_served(3)
            service.assert_served(1, "made@stable")
            service.label({"stable": 3})
            service.wait_served(3, "made@stable")
            wait(lambda: not service.broken, "nothing is broken any more")
            service.wait_status("made@1", 404)

    def test_broken_drops_versions(self, tmp_path):
        """Versions without a label don't pile up while labels are broken."""
        with versioned_service(tmp_path, 1, labels={"stable": 1}) as service:
            service.label(b"{")
            for version in range(2, 6):
                service.put(version)
                service.wait_served(version)
            service.wait_scanned()
            assert service.versions == ["1", "5"]


@pytest.mark.slow
class TestPromoted:
    """A version newer than `default` is never served for want of the default version."""

    @pytest.mark.parametrize("content", [{"default": 1}, b"{"])
    def test_missing(self, tmp_path, content):
        """Neither if the default version is in another folder, nor if the labels can't be
        read: the model is reported as broken until it can be served."""
        put(tmp_path, 1, name="other")
        root = tmp_path / "bundles"
        root.mkdir()
        os.rename(tmp_path / "made", root / "other")
        with versioned_service(
            tmp_path, 2, labels=content, skip_broken=True
        ) as service:
            service.wait_scanned()
            assert (service.status("made"), service.status("made@2")) == (503, 404)
            assert str(root / "made" / LABELS) in service.broken["made"]
            service.put(1)
            service.label({"default": 1})
            wait(lambda: service.status("made") == 200, "it is served")
            service.assert_served(1)
            assert service.versions == ["1"]
            service.label(b"{")
            service.put(3)
            service.wait_scanned()
            service.assert_served(1)

    @pytest.mark.parametrize(("newest", "served"), [(1, None), (2, "1")])
    def test_broken(self, tmp_path, newest, served):
        """If the default version is broken, an older one that is served takes its place."""
        put(tmp_path, 1, name="other")
        root = tmp_path / "bundles"
        root.mkdir()
        os.rename(tmp_path / "made", root / "other")
        broken = put(root, 2)
        flip(broken / bundle.GOLDEN)
        with versioned_service(
            tmp_path,
            1,
            3,
            labels={"default": 2, "next": 3},
            keep_versions=newest,
            skip_broken=True,
        ) as service:
            service.wait_scanned()
            if served:
                service.assert_served(1)
                service.assert_served(3, "made@next")
            else:
                assert service.status("made") == 503
                assert service.status("made@next") == 404
            service.put(2)
            wait(lambda: service.status("made") == 200, "it is served")
            service.wait_served(2)
            service.wait_served(3, "made@next")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("newest", "before", "after"),
    [(0, ["1", "2", "3"], ["1", "2", "3", "7"]), (2, ["2", "3"], ["3", "7"])],
)
def test_keep_versions(tmp_path, newest, before, after):
    """As many of the newest versions are served as the setting says; others are dropped,
    also by the workers."""
    with versioned_service(tmp_path, 1, 2, 3, keep_versions=newest) as service:
        assert service.versions == before
        service.put(7)
        service.wait_served(7)
        wait(lambda: service.versions == after, "the oldest is dropped")
        for version in after:
            service.assert_served(int(version), f"made@{version}")
        wait(lambda: service.loaded == [*map(int, after)], "the workers drop it")


@pytest.mark.slow
def test_tokens(tmp_path):
    """A state token belongs to one version: others refuse it, and it is good as long as its
    own is served, by whatever reference."""
    with versioned_service(tmp_path, 1, keep_versions=2) as service:
        token = service.get_token("made")
        service.put(2)
        service.wait_served(2)
        assert service.continue_from("made", token).status_code == 409
        assert service.continue_from("made@2", token).status_code == 409
        response = service.continue_from("made@1", token)
        assert response.status_code == 200
        answer = response.json()["predictions"][0]["probabilities"]
        assert answer == [2 + 1, 7 + 1, 7 + 2 * 7 + 1]
        service.put(3)
        service.wait_status("made@1", 404)
        response = service.continue_from("made", token)
        assert response.status_code == 409
        assert response.json()["type"] == "urn:unrolled:error:state-conflict"
        service.label({"old": 1})
        service.wait_served(1, "made@old")
        assert service.continue_from("made@old", token).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["1", "stable"])
def test_default(tmp_path, reference):
    """The setting of a default may name a version or a label; that version is still
    served beside newer ones."""
    options = {"default_classify": f"made@{reference}"}
    if reference == "stable":
        options["labels"] = {"stable": 1}
    with versioned_service(tmp_path, 1, 2, **options) as service:
        for newer in (3, 4):
            body = service.http.post("/classify", json=GOOD).json()
            assert body["version"] == "1"
            service.put(newer)
            service.wait_served(newer)
            service.wait_scanned()
        assert service.http.post("/classify", json=GOOD).json()["version"] == "1"
