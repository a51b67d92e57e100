"""Runs that are extended, and runs in mixed precision."""

import shutil

import numpy as np
import pytest

from model.config import ConfigError
from model.training import loop, steps
from model.training.runs import Run
from tests.model.training.events import Interrupt, Stop, assert_same_weights


class TestExtended:
    """A complete run that is resumed with more epochs."""

    @pytest.mark.slow
    def test_constant(self, data, config, tmp_path):
        """With a constant learning rate it ends with the weights of the longer run."""
        longer = config.update({"training": {"schedule": "constant", "patience": 9}})
        shorter = longer.update({"training": {"epochs": 2}})
        whole = loop.fit(data, longer, Run(tmp_path / "whole"))
        first = loop.fit(data, shorter, Run(tmp_path / "run"))
        assert len(first.history) == 2
        extended = loop.fit(data, longer, Run(tmp_path / "run"), resume=True)
        assert extended.history == whole.history
        assert not extended.finished_before
        assert_same_weights(extended.network, whole.network)
        assert Run(tmp_path / "run").config()[0] == longer

    @pytest.mark.slow
    def test_cosine(self, data, config, whole, tmp_path):
        """The learning rate goes on as in a run of the new length, from the same update."""
        run = Run(tmp_path / "run")
        shutil.copytree(whole[1].folder, run.folder)
        longer = config.update({"training": {"epochs": 6, "patience": 9}})
        extended = loop.fit(data, longer, run, resume=True)
        assert extended.history[:3] == whole[0].history
        rates = [entry.learning_rate for entry in extended.history[3:]]
        cosine = 0.5 * (1 + np.cos(np.pi * np.arange(3, 6) / 6))
        np.testing.assert_allclose(rates, 0.02 * cosine, rtol=1e-4)

    def test_folds_are_trained_anew(self, data, config, whole, tmp_path):
        """The answers of a cross-validation are of the old length, and so not kept."""
        run = Run(tmp_path / "run")
        shutil.copytree(whole[1].folder, run.folder)
        (run.folder / "folds").mkdir()
        run.resume(config, data.digest)
        assert (run.folder / "folds").exists()
        run.resume(config.update({"training": {"epochs": 4}}), data.digest)
        assert not (run.folder / "folds").exists()


class TestMixedPrecision:
    """On a processor: slower, but the same arithmetic as on a GPU."""

    @pytest.mark.slow
    def test_trains(self, data, config, whole, tmp_path, monkeypatch):
        """It learns as well in float16, repeats and resumes to the bit, and the result
        computes in float32."""
        monkeypatch.setattr(steps, "check_precision", lambda _: None)
        mixed = config.update({"training": {"mixed_precision": True}})
        trained = loop.fit(data, mixed, Run(tmp_path / "a"))
        assert {weight.dtype for weight in trained.network.weights} == {"float32"}
        assert trained.network.encoder[0][0].compute_dtype == "float32"
        costs = [entry.cost for entry in trained.history]
        expected = [entry.cost for entry in whole[0].history]
        assert costs != expected
        np.testing.assert_allclose(costs, expected, rtol=0.05)
        with pytest.raises(Stop):
            loop.fit(data, mixed, Run(tmp_path / "b"), callback=Interrupt(Stop(), 2))
        resumed = loop.fit(data, mixed, Run(tmp_path / "b"), resume=True)
        assert_same_weights(resumed.network, trained.network)

    def test_needs_a_gpu(self, data, config):
        """Without a GPU it is refused."""
        mixed = config.update({"training": {"mixed_precision": True}})
        with pytest.raises(ConfigError, match=r"mixed_precision: needs one GPU"):
            loop.fit(data, mixed)
