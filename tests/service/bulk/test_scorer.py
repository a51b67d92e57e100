"""The predictions of a shard, and the bundle that is chosen for them."""

import json
import shutil

import numpy as np
import pytest

from model.bundle.bundle import BundleError
from service.bulk import bundle_choice
from service.bulk.rows import Row
from service.bulk.scorer import Scorer
from service.settings import Settings
from tests.support.bundles import copy_bundle, random_frames

pytest.importorskip("pyarrow")
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize(
    ("name", "top_k"), [("walks", None), ("tags", 2), ("both", None)]
)
def test_scores(bundles, running_server, name, top_k):
    """Each row gives a line with its id, and the service's prediction or an error."""
    rng = np.random.default_rng(3)
    lengths = [5, 900, 1, 40, 3, 3, 2_500, 17]
    frames = [random_frames(rng, length) for length in lengths]
    items = [Row(place, sequence) for place, sequence in enumerate(frames)]
    items[2:2] = [Row("bad", None, "frames is missing"), Row(None, frames[0])]
    result = Scorer(bundles / name / "1", Settings(), top_k).score(items)
    lines = [json.loads(line) for line in result.text.splitlines()]
    assert (result.sequences, result.refused) == (10, 1)
    assert result.steps == sum(lengths) + 5
    assert [line.get("id") for line in lines] == [0, 1, "bad", None, 2, 3, 4, 5, 6, 7]
    assert lines.pop(2) == {"id": "bad", "error": "frames is missing"}
    frames[2:2] = [frames[0]]
    sequences = [sequence.tolist() for sequence in frames]
    body = {"model": name, "sequences": sequences, "top_k": top_k}
    task = "classify" if name == "walks" else "label"
    right = running_server.http.post(f"/{task}", json=body).json()["predictions"]
    for line, prediction in zip(lines, right, strict=True):
        line.pop("id", None)
        assert line.keys() == prediction.keys()
        for member in ("label", "labels"):
            assert line.get(member) == prediction.get(member)
        if top_k is None:
            np.testing.assert_allclose(
                line["probabilities"], prediction["probabilities"], **CLOSE
            )


def test_replaced_bundle(bundles):
    """A bundle that was replaced since the job began is refused."""
    with pytest.raises(BundleError, match="has been replaced"):
        Scorer(bundles / "walks" / "1", Settings(), None, "0" * 64)


class TestChoose:
    """The bundle that the service would choose."""

    @pytest.fixture
    def root(self, bundles, tmp_path):
        for name in ("walks", "tags", "both"):
            shutil.copytree(bundles / name, tmp_path / name)
        copy_bundle(bundles / "tags" / "1", tmp_path / "tags" / "2", version="2")
        return tmp_path

    def choose(self, root, name, task="label", **settings):
        bundle = bundle_choice.choose([root], task, name, Settings(**settings))
        return f"{bundle.metadata.name}@{bundle.metadata.version}"

    def test_names(self, root):
        """By NAME, NAME@VERSION or NAME@LABEL, or the task's default."""
        assert self.choose(root, "tags") == "tags@2"
        assert self.choose(root, "tags@1") == "tags@1"
        assert self.choose(root, "tags@latest") == "tags@2"
        assert self.choose(root, None) == "both@1"
        assert self.choose(root, None, default_label="tags@1") == "tags@1"
        assert self.choose(root, None, "classify") == "walks@1"
        (root / "tags" / "labels.json").write_text('{"default": 1, "next": 2}')
        assert self.choose(root, "tags") == "tags@1"
        assert self.choose(root, "tags@next") == "tags@2"
        assert self.choose(root, "tags@latest") == "tags@2"

    def test_single_bundle(self, root):
        """The folder may also be a single bundle."""
        shutil.move(root / "tags" / "1", root / "single")
        for name in (None, "tags", "tags@1"):
            assert self.choose(root / "single", name) == "tags@1"
        with pytest.raises(BundleError, match="no bundle tags@2"):
            self.choose(root / "single", "tags@2")

    def test_no_bundle(self, root):
        """If there is no such bundle of the task, the message lists all bundles."""
        for name, task in (
            ("nobody", "label"),
            ("tags@3", "label"),
            ("tags", "classify"),
            ("tags@x", "label"),
        ):
            message = f"no bundle {name} for {task}; there are"
            with pytest.raises(BundleError, match=message):
                self.choose(root, name, task)

    def test_broken(self, root):
        """A broken bundle is an error only for those who ask for it."""
        (root / "both" / "1" / "saved_model.pb").write_bytes(b"none")
        assert self.choose(root, "tags") == "tags@2"
        with pytest.raises(
            BundleError, match=r"both/1/saved_model\.pb: SHA-256 differs"
        ):
            self.choose(root, "both")

    def test_remote(self, root, tmp_path):
        """A URI gives a local copy, which is removed at the end."""
        with bundle_choice.BundleFolders([root.as_uri()]) as (folder,):
            assert folder != root
            assert self.choose(folder, "tags") == "tags@2"
        assert not folder.exists()
        with bundle_choice.BundleFolders([str(root)]) as folders:
            assert folders == [root]
        (tmp_path / "empty").mkdir()
        empty = bundle_choice.BundleFolders([(tmp_path / "empty").as_uri()])
        with pytest.raises(BundleError, match="no NAME/VERSION"), empty:
            pass
