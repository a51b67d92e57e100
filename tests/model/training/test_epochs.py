"""The best epoch, early stopping, and a training that collapses, with invented scores."""

import numpy as np
import pytest

from model.training import loop
from model.training.runs import Run
from tests.support.networks import make_config, make_dataset


class TestEpochs:
    """The best epoch and early stopping, with invented scores."""

    def fit(self, monkeypatch, tmp_path, scores, **settings):
        data = make_dataset(counts=(8, 4, 0))
        marks = []

        def train(epochs, number):
            for weight in epochs.network.trainable_variables:
                weight.assign(np.full(weight.shape, number))
            marks.append(number)
            return 1.0, 50.0

        results = iter(scores)
        monkeypatch.setattr(loop._Loop, "_train", train)
        monkeypatch.setattr(loop._Loop, "measure", lambda *_: next(results))
        config = make_config(training=settings)
        trained = loop.fit(data, config, Run(tmp_path))
        values = {
            v for w in trained.network.trainable_variables for v in w.numpy().flat
        }
        return values, [e.epoch for e in trained.history if e.best], marks

    @pytest.mark.parametrize(
        ("scores", "best", "last"),
        [
            pytest.param([(1, 9), (1, 8), (1, 7), (1, 6)], [1, 2, 3, 4], 4, id="falls"),
            pytest.param([(1, 5), (1, 6), (1, 7)], [1], 3, id="patience"),
            pytest.param(
                [(1, 5), (1, 6), (1, 4), (1, 4), (1, 9)], [1, 3], 5, id="patience-anew"
            ),
            pytest.param(
                [(3, 5), (2, 5), (2, 5), (2, 5)], [1, 2], 4, id="cost-decides"
            ),
            pytest.param([(1, 5), (0, 6), (0, 7)], [1], 3, id="error-before-cost"),
        ],
    )
    def test_best(self, monkeypatch, tmp_path, scores, best, last):
        """The best epoch has the lowest validation error, then cost. Training stops
        `patience` epochs later and returns its weights."""
        values, best_epochs, run = self.fit(
            monkeypatch, tmp_path, scores, epochs=len(scores) + (last < 4), patience=2
        )
        assert best_epochs == best
        assert values == {best[-1]}
        assert run == list(range(1, last + 1))

    def test_no_number(self, monkeypatch, tmp_path):
        """A run whose cost is NaN stops after `patience` epochs."""
        nan = float("nan")
        _, best, run = self.fit(
            monkeypatch, tmp_path, [(nan, 60)] * 4, epochs=4, patience=2
        )
        assert best == [1]
        assert run == [1, 2, 3]

    @pytest.mark.parametrize(
        ("costs", "best", "epochs", "warning"),
        [
            ([3, 2, 1, 1.05], 4, 4, None),
            ([3, 0.1, 0.2, 2.9], 3, 4, "from 0.1000 (epoch 2) to 2.9000 (epoch 4)"),
            ([3, 1, float("nan"), 1], 2, 3, "to nan (epoch 3)"),
            ([float("nan"), 1], 1, 1, "not finite"),
        ],
    )
    def test_without_validation(
        self, monkeypatch, tmp_path, costs, best, epochs, warning
    ):
        """Without a validation part the last weights are used, unless the cost collapsed;
        a collapse is reported."""
        results = iter(costs)
        monkeypatch.setattr(loop._Loop, "_train", lambda *_: (next(results), 50.0))
        config = make_config(training={"epochs": len(costs), "patience": 1})
        trained = loop.fit(make_dataset(counts=(8, 0, 4)), config, Run(tmp_path))
        assert [e.epoch for e in trained.history if e.best][-1] == best
        assert len(trained.history) == epochs
        assert warning in trained.warning if warning else trained.warning is None
