"""Fixtures that the tests of several parts of the service share."""

import logging

import numpy as np
import pytest

from tests.support.servers import TASKS, wait


@pytest.fixture(scope="session")
def saved_model(bundles):
    """Computes the answer of a bundle's SavedModel to a sequence, or to its first steps
    of each of some lengths."""
    import tensorflow as tf

    loaded = {
        name: tf.saved_model.load(str(bundles / name / "1")).signatures
        for name in TASKS
    }

    def predict(name, frames, lengths=()):
        outputs = loaded[name]["serving_default"](
            frames=tf.constant(np.repeat(frames[None], len(lengths) or 1, 0)),
            lengths=tf.constant(lengths or [len(frames)], tf.int32),
        )
        probabilities = outputs["probabilities"].numpy()
        return probabilities if lengths else probabilities[0]

    return predict


@pytest.fixture
def logged(caplog):
    """Finds the one log record of a stream that has ended, by its request id."""
    caplog.set_level(logging.INFO, "service.request")

    def find(stream):
        known = isinstance(stream, str)
        request_id = stream if known else stream.headers["x-request-id"]

        def records():
            records = [r for r in caplog.records if r.name == "service.request"]
            return [record for record in records if record.request_id == request_id]

        wait(records, "it is logged")
        (record,) = records()
        return record

    return find
