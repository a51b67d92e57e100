"""Models, versions and paths of TensorFlow Serving's REST API v1."""

import shutil

import pytest

from service.settings import Settings
from tests.service.compat.protocols import ask, instances, refused
from tests.support.bundles import OnnxEngine, copy_bundle
from tests.support.servers import TASKS, running


@pytest.fixture(scope="module")
def versions(bundles, tmp_path_factory):
    """A service with two versions of a model, the older one of which has a label."""
    root = tmp_path_factory.mktemp("versions")
    copy_bundle(bundles / "walks" / "1", root / "walks" / "1")
    copy_bundle(bundles / "walks" / "1", root / "walks" / "2", version="2")
    (root / "walks" / "labels.json").write_text('{"stable": 1}')
    settings = Settings(port=0, bundles=root, workers=1)
    with running(settings, load_engine=OnnxEngine) as service:
        yield service
    shutil.rmtree(root)


def status_of(version):
    status = {"error_code": "OK", "error_message": ""}
    return {"version": version, "state": "AVAILABLE", "status": status}


class TestModels:
    def test_status(self, versions):
        """The versions of a reference, newest first, with KServe's fields."""
        for path, served in (
            ("walks", ["2", "1"]),
            ("walks/", ["2", "1"]),
            ("walks/versions/1", ["1"]),
            ("walks/versions/2", ["2"]),
            ("walks/labels/stable", ["1"]),
            ("walks/labels/latest", ["2"]),
            ("walks@stable", ["1"]),
        ):
            statuses = {"model_version_status": list(map(status_of, served))}
            response = versions.http.get(f"/v1/models/{path}")
            assert response.json() == statuses | {"name": "walks", "ready": True}

    def test_versions(self, versions):
        """A version or a label in the path chooses the model that answers."""
        for path, version in (("", "2"), ("/versions/1", "1"), ("/labels/stable", "1")):
            metadata = versions.http.get(f"/v1/models/walks{path}/metadata").json()
            spec = {"name": "walks", "signature_name": "", "version": version}
            assert metadata["model_spec"] == spec
            assert ask(versions.http, f"walks{path}:predict", instances())

    @pytest.mark.slow
    def test_metadata(self, http, bundles):
        """The signatures are those of the SavedModel, as protobuf writes them in JSON:
        each tensor's type, and its dimensions as texts."""
        from google.protobuf import json_format
        from tensorflow.core.protobuf import saved_model_pb2

        for name in TASKS:
            saved = saved_model_pb2.SavedModel()
            path = bundles / name / "1" / "saved_model.pb"
            saved.ParseFromString(path.read_bytes())
            exported = saved.meta_graphs[0].signature_def
            answer = http.get(f"/v1/models/{name}/metadata").json()
            assert set(answer) == {"model_spec", "metadata"}
            signatures = answer["metadata"]["signature_def"]["signature_def"]
            steps = ["step"] if name != "both" else []
            assert set(signatures) == {"serving_default", *steps}
            for key, signature in signatures.items():
                expected = json_format.MessageToDict(
                    exported[key],
                    preserving_proto_field_name=True,
                    always_print_fields_with_no_presence=True,
                )
                for kind in ("inputs", "outputs"):
                    assert set(signature[kind]) == set(expected[kind])
                    for key, tensor in signature[kind].items():
                        # The tensor's name in the graph may differ.
                        other = expected[kind][key] | {"name": ""}
                        assert tensor | {"name": ""} == other
                assert signature["method_name"] == expected["method_name"]

    def test_names(self, http):
        """The names of all models, and the state of the server, as KServe's client asks
        for them."""
        for path in ("/v1/models", "/v1/models/", "/V1/MODELS"):
            assert http.get(path).json() == {"models": ["both", "tags", "walks"]}
        assert http.get("/").json()["status"] == "alive"


class TestNothingThere:
    def test_model(self, http):
        """An unknown model, version or label is 404, in TensorFlow Serving's words."""
        for name in ("nobody", "Walks", "walks/versions/2", "walks/labels/x", "walks@"):
            for end in ("", "/metadata", ":predict", ":classify"):
                method, path = (
                    "POST" if ":" in end else "GET",
                    f"/v1/models/{name}{end}",
                )
                response = http.request(method, path, content=b"{}")
                message = refused(response, 404)
                assert message.startswith("Servable not found for request: ")

    def test_path(self, http):
        """An unknown path is a malformed request, as in TensorFlow Serving."""
        for path in (
            "/v1",
            "/v1/",
            "/v1/nothing",
            "/v1/models/walks/versions",
            "/v1/models/walks/versions/x:predict",
            "/v1/models/walks/versions/-1",
            "/v1/models/walks/versions/1/labels/latest",
            "/v1/models/walks:explain",
            "/v1/models/walks:predict/",
            "/v1/models/walks/more",
            "/v1/models/a%2Fb:predict",
            "/v1/models/:predict",
        ):
            for method in ("GET", "POST"):
                response = http.request(method, path)
                assert refused(response, 400).startswith("Malformed request")

    def test_method(self, http):
        """Another method is refused with the one that is allowed."""
        for method, path, allowed in (
            ("GET", "walks:predict", "POST"),
            ("PUT", "walks:predict", "POST"),
            ("OPTIONS", "walks:classify", "POST"),
            ("GET", "walks:regress", "POST"),
            ("POST", "walks", "GET"),
            ("DELETE", "walks/versions/1", "GET"),
            ("POST", "walks/metadata", "GET"),
        ):
            response = http.request(method, f"/v1/models/{path}")
            assert allowed in refused(response, 405)
            assert response.headers["allow"] == allowed
