"""Promotion: a new version is served if it is better than the one in service."""

from dataclasses import replace

import numpy as np
import pytest

from model.bundle import bundle, labels
from model.bundle.bundle import BundleError
from model.datasets.dataset import TEST
from model.evaluation import comparison, evaluation
from model.evaluation.comparison import Difference
from model.export import promotion
from tests.support import exports
from tests.support.networks import make_dataset

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def source():
    """A published bundle, and a test part of which its network has everything right."""
    exported = exports.load()["classify-gru"]
    dataset = make_dataset(counts=(0, 0, 100), classes=4, spread=3)
    predictions = evaluation.predict_bundle(exported.bundle, dataset)
    return exported.folder, replace(dataset, targets=predictions.scores.argmax(1))


def publish(source, root, **changes):
    return exports.publish_copy(source, root, "walks", **changes)


def trained_on(folder, count):
    """Keys of the `bundle.json` of a bundle that was trained on so many sequences."""
    training = bundle.read(folder).metadata.training.model_dump(mode="json")
    training["parts"]["train"]["count"] = count
    return {"training": training}


class TestDecide:
    def test_first(self, source, tmp_path):
        """The first version of a name is compared with none."""
        folder, dataset = source
        assert promotion.decide(publish(folder, tmp_path), dataset, "better") is None
        assert not (tmp_path / "walks" / labels.LABELS).exists()

    @pytest.mark.parametrize(
        "choice",
        [
            "better",
            *(pytest.param(c, marks=SLOW) for c in ("not-worse", "never", "always")),
        ],
    )
    def test_same(self, source, tmp_path, choice):
        """The same network is neither better nor worse."""
        folder, dataset = source
        publish(folder, tmp_path)
        result = promotion.decide(publish(folder, tmp_path), dataset, choice)
        assert (result.name, result.version, result.present) == ("walks", 2, 1)
        assert result.promoted == (choice in ("not-worse", "always"))
        assert result.reason.startswith("not provably worse: +0.00 points, 95 % inter")
        assert result.part == "test"
        assert result.metrics[0] == result.metrics[1]
        assert result.metrics[0].count == len(dataset)
        assert result.difference.value == 0
        default = 2 if result.promoted else 1
        assert labels.read(tmp_path / "walks") == {"default": default}

    @SLOW
    def test_rules(self, source, tmp_path, monkeypatch):
        """A provably better version takes over, and a provably worse one doesn't. In
        between `not-worse` serves the new version, and `better` only if its error is
        higher by at most a standard error and it was trained on more."""
        folder, dataset = source
        publish(folder, tmp_path, **trained_on(folder, 900))
        for count, change, decided, reason in (
            (900, (-3.0, -5.0, -1.0), (True, True), "provably better: -3.00 points"),
            (1240, (3.0, 1.0, 5.0), (False, False), "provably worse: +3.00 points"),
            (
                900,
                (-1.0, -3.0, 1.0),
                (False, True),
                "; nor better, and trained on 900 s",
            ),
            (
                1240,
                (0.5, -2.5, 3.5),
                (True, True),
                "; and trained on 1,240 sequences, ",
            ),
            (1240, (2.96, -0.24, 6.08), (False, True), "by more than a standard error"),
        ):
            monkeypatch.setattr(
                comparison, "difference", lambda *_, change=change: Difference(*change)
            )
            new = publish(folder, tmp_path, **trained_on(folder, count))
            results = []
            for choice in ("better", "not-worse"):
                labels.promote([tmp_path / "walks"], 1)
                results.append(promotion.decide(new, dataset, choice))
            assert tuple(result.promoted for result in results) == decided, change
            assert reason in results[0].reason
        assert results[1].reason == (
            "not provably worse: +2.96 points, 95 % interval -0.24 to +6.08"
        )

    def test_seen(self, source, tmp_path):
        """Sequences that the version in service was trained on are left out."""
        folder, _ = source
        publish(folder, tmp_path)
        dataset = exports.load()["classify-gru"].dataset
        dataset = replace(dataset, split=np.full(len(dataset), TEST))
        result = promotion.decide(publish(folder, tmp_path), dataset, "better")
        assert result.left_out == 15
        assert result.metrics[0].count == len(dataset) - 15
        seen = dataset.take(np.arange(18))
        result = promotion.decide(publish(folder, tmp_path), seen, "not-worse")
        assert not result.promoted
        reason = "has 3 sequences that version 1 was not trained on, too few to decide"
        assert reason in result.reason

    def test_one_group(self, source, tmp_path):
        """A test part of one group decides nothing, whatever the rule is."""
        folder, dataset = source
        publish(folder, tmp_path)
        dataset = replace(dataset, groups=np.full(len(dataset), "ann", object))
        new = publish(folder, tmp_path)
        for choice in ("better", "not-worse"):
            result = promotion.decide(new, dataset, choice)
            assert not result.promoted
            assert result.reason == "its test part has 1 group, too few to decide by"
        assert promotion.decide(new, dataset, "always").promoted

    @pytest.mark.slow
    def test_worse(self, source, tmp_path):
        """A network that is worse is not promoted, unless that is asked for; nor is the
        next one compared with it."""
        folder, dataset = source
        publish(folder, tmp_path)
        worse = exports.load()["classify-gru-original"].folder
        result = promotion.decide(publish(worse, tmp_path), dataset, "better")
        assert not result.promoted
        assert result.difference.worse
        assert result.metrics[1].error > result.metrics[0].error
        assert labels.default([tmp_path / "walks"]) == 1
        third = promotion.decide(publish(folder, tmp_path), dataset, "not-worse")
        assert (third.present, third.promoted) == (1, True)
        last = promotion.decide(publish(worse, tmp_path), dataset, "always")
        assert (last.promoted, last.difference.worse) == (True, True)
        assert labels.rollback([tmp_path / "walks"]) == (4, 3)

    def test_other_interface(self, source, tmp_path):
        """A network of another task, or with other classes or features, is promoted
        only if that is asked for: callers of the present one would break."""
        folder, dataset = source
        first = publish(folder, tmp_path)
        metadata = bundle.read(first).metadata
        features = metadata.input.model_dump() | {"names": ("a", "b", "c")}
        for changes, reason in (
            ({"classes": metadata.classes[::-1]}, "other classes: ant, bee, cat, dog"),
            ({"input": features}, "version 1 has other features: x0, x1, x2"),
            ({"task": "label"}, "version 1 is to classify, this one to label"),
        ):
            new = publish(folder, tmp_path, **changes)
            result = promotion.decide(new, dataset, "better")
            assert not result.promoted
            assert reason in result.reason
            assert result.metrics is None
        assert labels.default([tmp_path / "walks"]) == 1
        assert promotion.decide(new, dataset, "always").promoted
        assert labels.default([tmp_path / "walks"]) == int(new.name)

    def test_broken(self, source, tmp_path):
        """If the version in service is broken, that is the reason."""
        folder, dataset = source
        first = publish(folder, tmp_path)
        (first / "saved_model.pb").write_bytes(b"none")
        result = promotion.decide(publish(folder, tmp_path), dataset, "better")
        assert not result.promoted
        assert "version 1 is broken" in result.reason
        assert "saved_model.pb: SHA-256 differs" in result.reason

    @SLOW
    def test_validation(self, source, tmp_path):
        """Without a test part both answer the validation part."""
        folder, dataset = source
        publish(folder, tmp_path)
        dataset = replace(dataset, split=np.full(len(dataset), 1))
        result = promotion.decide(publish(folder, tmp_path), dataset, "better")
        assert result.part == "validation"

    @SLOW
    def test_promoted_meanwhile(self, source, tmp_path, monkeypatch):
        """If another version was promoted during the comparison, it is compared with
        that one; this ends."""
        folder, dataset = source
        for _ in range(3):
            publish(folder, tmp_path)
        paths, promote = [tmp_path / "walks"], labels.promote
        calls = []

        def overtaken(paths, version, **options):
            calls.append(options["instead_of"])
            if len(calls) == 1:
                promote(paths, 2)
            return promote(paths, version, **options)

        monkeypatch.setattr(labels, "promote", overtaken)
        third = tmp_path / "walks" / "3"
        result = promotion.decide(third, dataset, "not-worse")
        assert calls == [1, 2]
        assert (result.present, result.promoted) == (2, True)
        monkeypatch.setattr(labels, "promote", lambda *_, **__: 0)
        promote(paths, 2)
        with pytest.raises(BundleError, match="all the time"):
            promotion.decide(third, dataset, "not-worse")
