"""The model repository, opened and closed, with Triton's own client."""

import shutil

import pytest

from service.pool import spawn
from service.settings import Settings
from service.worker import engine as engines
from tests.clients.triton import SERVED, assert_same, connected, inputs_of
from tests.support.bundles import copy_bundle
from tests.support.servers import native_answers, running, sequences_of

REPOSITORY = {"model_repository", "model_repository(unload_dependents)"}


@pytest.fixture
def owned(bundles, tmp_path):
    """A folder of bundles, and a service of its own with an open repository."""
    root = tmp_path / "owned"
    for name in ("walks", "tags"):
        shutil.copytree(bundles / name, root / name)
    settings = Settings(port=0, bundles=root, workers=1, admin=True, reload_seconds=0)
    with running(settings, start=spawn.thread(engines.ENGINES)) as service:
        yield root, service


class TestRepository:
    def test_closed(self, client):
        """Without the setting the repository is closed; the error names the setting."""
        for method in ("get_model_repository_index", "load_model", "unload_model"):
            names = () if method.endswith("index") else ("walks",)
            error = client.refused(method, *names)
            assert error.status() == "403"
            assert "UNROLLED_ADMIN" in error.message()
        assert client.call("is_model_ready", "walks")

    def test_unload_and_load(self, kind, owned):
        """An unloaded model is not served until it is loaded."""
        _, service = owned
        sequences = sequences_of("walks")
        answers = native_answers(service.http, "walks", sequences)
        with connected(kind, service.url) as client:
            about = client.call("get_server_metadata")
            assert set(about["extensions"]) == SERVED | REPOSITORY
            index = client.call("get_model_repository_index")
            ready = {"version": "1", "state": "READY", "reason": ""}
            assert index == [{"name": name} | ready for name in ("tags", "walks")]
            client.call("unload_model", "walks", unload_dependents=True)
            assert not client.call("is_model_ready", "walks")
            assert client.call("is_model_ready", "tags")
            client.refused("infer", "walks", inputs_of(sequences))
            index = client.call("get_model_repository_index")
            states = {
                model["name"]: (model["state"], model["reason"]) for model in index
            }
            assert states["walks"] == ("UNAVAILABLE", "unloaded")
            assert states["tags"] == ("READY", "")
            client.call("load_model", "walks")
            assert client.call("is_model_ready", "walks")
            assert_same(client.call("infer", "walks", inputs_of(sequences)), answers)
            for method in ("load_model", "unload_model"):
                assert client.refused(method, "nothing").status() == "404"
            for changed in (
                {"config": '{"max_batch_size": 1}'},
                {"config": "sequences"},
                {"config": "{}", "files": {"file:1/model": b"x"}},
            ):
                error = client.refused("load_model", "walks", **changed)
                assert error.status() == "400"

    def test_batching(self, kind, owned):
        """Loading may choose the batching that a configuration announces."""
        _, service = owned
        with connected(kind, service.url) as client:
            config = '{"sequence_batching": {}}'
            for override, batching in ((config, "sequence"), (None, "dynamic")):
                client.call("load_model", "walks", config=override)
                fields = client.call("get_model_config", "walks")
                kinds = {"sequence_batching", "dynamic_batching"} & set(fields)
                assert kinds == {f"{batching}_batching"}
                assert "dynamic_batching" in client.call("get_model_config", "tags")

    def test_new_version(self, kind, owned):
        """Loading serves a new version, while a sequence keeps its own; a broken version is
        refused, and the one before it is still served."""
        root, service = owned
        inputs = inputs_of(sequences_of("walks", [3]))
        options = {"sequence_id": 1}
        with connected(kind, service.url) as client:
            client.call("infer", "walks", inputs, sequence_start=True, **options)
            copy_bundle(root / "walks" / "1", root / "walks" / "2", version="2")
            client.call("load_model", "walks")
            assert client.call("get_model_metadata", "walks")["versions"] == ["2"]
            result = client.call("infer", "walks", inputs, **options)
            assert result.get_response()["model_version"] == "1"
            copy_bundle(root / "walks" / "1", root / "walks" / "3", version="4")
            error = client.refused("load_model", "walks")
            assert error.status() == "503"
            index = client.call("get_model_repository_index")
            states = {(m["name"], m["version"]): m["state"] for m in index}
            assert states["walks", "2"] == "READY"
            assert states["walks", "3"] == "UNAVAILABLE"
            result = client.call("infer", "walks", inputs)
            assert result.get_response()["model_version"] == "2"
