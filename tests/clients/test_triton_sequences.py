"""Sequences under an id, sent by Triton's own client."""

import itertools

import numpy as np

from tests.clients.triton import assert_same, inputs_of
from tests.support.bundles import random_frames
from tests.support.servers import native_answers, sequences_of


def refused_continuation(client, name, id):
    inputs = inputs_of(sequences_of(name, [2]))
    return client.refused("infer", name, inputs, sequence_id=id)


class TestSequences:
    def test_whole(self, client, http):
        """A sequence in parts under an id gets the answers of the whole one."""
        for name, id in (
            ("walks", 7),
            ("tags", 7),
            ("walks", 2**64 - 1),
            ("tags", "café 7"),
        ):
            (whole,) = sequences_of(name, [23])
            (answer,) = native_answers(http, name, [whole])
            parts = []
            for start, end in itertools.pairwise([0, 1, 9, 22, 23]):
                result = client.call(
                    "infer",
                    name,
                    inputs_of([whole[start:end]]),
                    sequence_id=id,
                    sequence_start=start == 0,
                    sequence_end=end == 23,
                )
                (part,) = result.as_numpy("probabilities")
                parts.append(part)
                if name == "walks":
                    (so_far,) = native_answers(http, name, [whole[:end]])
                    np.testing.assert_allclose(part, so_far, atol=1e-5)
            if name == "tags":
                np.testing.assert_allclose(np.concatenate(parts), answer, atol=1e-5)
            assert refused_continuation(client, name, id).status() == "400"

    def test_interleaved(self, client, http):
        """Sequences with several ids, a number and its text among them, and of two
        models, are independent."""
        keys = [("walks", 1), ("walks", "1"), ("walks", 2), ("tags", 1), ("tags", "b")]
        rng = np.random.default_rng(3)
        wholes = {key: random_frames(rng, 12) for key in keys}
        last = {}
        for start in (0, 4, 8):
            for name, key in keys:
                last[name, key] = client.call(
                    "infer",
                    name,
                    inputs_of([wholes[name, key][start : start + 4]]),
                    sequence_id=key,
                    sequence_start=start == 0,
                    sequence_end=start == 8,
                )
        for (name, key), result in last.items():
            (answer,) = native_answers(http, name, [wholes[name, key]])
            answer = answer[-4:] if name == "tags" else answer
            assert_same(result, [answer])

    def test_restart(self, client, http):
        """START of an existing sequence restarts it."""
        first, second = sequences_of("walks", [5, 5])
        for frames, end in ((first, False), (second, True)):
            flags = {"sequence_start": True, "sequence_end": end}
            inputs = inputs_of([frames])
            result = client.call("infer", "walks", inputs, sequence_id=9, **flags)
            assert_same(result, native_answers(http, "walks", [frames]))

    def test_no_sequence(self, client, http):
        """The ids 0 and "" mean no sequence; one that has not started is an error."""
        sequences = sequences_of("walks")
        for id in (0, ""):
            inputs = inputs_of(sequences)
            result = client.call("infer", "walks", inputs, sequence_id=id)
            assert_same(result, native_answers(http, "walks", sequences))
        error = refused_continuation(client, "walks", "new")
        assert error.status() == "400"
        assert "must specify the START flag on its first request" in error.message()

    def test_refused_part(self, client, http):
        """A refused part changes nothing: the sequence continues."""
        (whole,) = sequences_of("walks", [6])
        options = {"sequence_id": 11, "sequence_start": True}
        client.call("infer", "walks", inputs_of([whole[:2]]), **options)
        options = {"sequence_id": 11}
        client.refused("infer", "walks", inputs_of([whole] * 2), **options)
        options |= {"sequence_end": True}
        result = client.call("infer", "walks", inputs_of([whole[2:]]), **options)
        assert_same(result, native_answers(http, "walks", [whole]))

    def test_refusals(self, client):
        """Bidirectional networks and batches of several sequences are refused."""
        options = {"sequence_id": 3, "sequence_start": True}
        error = client.refused(
            "infer", "both", inputs_of(sequences_of("both", [2])), **options
        )
        assert error.status() == "400"
        assert "bidirectional" in error.message()
        error = client.refused(
            "infer", "walks", inputs_of(sequences_of("walks")), **options
        )
        assert error.status() == "400"
        assert "batch size 1" in error.message()
