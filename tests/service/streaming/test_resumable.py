"""Resumable sequences: sent in parts, by tokens, every answer is that of the whole,
wherever the sequence was cut and whichever service computes the next part."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.bundle import bundle
from service.codecs.process import INLINE_BYTES
from service.pool import spawn
from service.registry import state_tokens
from service.registry.state_tokens import State, TokenSigner
from service.settings import Settings
from service.worker import engine as engines
from tests.support.bundles import copy_bundle, random_frames
from tests.support.servers import running, value

KEY = "a key of the tests"
TASKS = {"walks": "classify", "tags": "label"}
FRAMES = random_frames(np.random.default_rng(0), 30)
# For each sequence, the request in which it begins, and the lengths of its parts.
PARTS = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(1, 40), min_size=1, max_size=5)),
    min_size=1,
    max_size=5,
)
START = spawn.thread(engines.ENGINES)


def serve(bundles, engine):
    """A service with this engine and the key of the tests."""
    settings = Settings(
        port=0, bundles=bundles, engine=engine, workers=2, state_key=KEY
    )
    return running(settings, start=START)


@pytest.fixture(scope="module")
def onnx(bundles):
    with serve(bundles, "onnx") as service:
        yield service


@pytest.fixture(scope="module")
def tensorflow(bundles):
    with serve(bundles, "tensorflow") as service:
        loaded = service.registry.models.values()
        assert {model.loaded.engine for model in loaded} == {"tensorflow"}
        yield service


@pytest.fixture(
    scope="module",
    params=["onnx", pytest.param("tensorflow", marks=pytest.mark.slow)],
)
def service(request):
    return request.getfixturevalue(request.param)


def post(service, name, sequences, **members):
    body = {"model": name, "sequences": [np.asarray(s).tolist() for s in sequences]}
    content = json.dumps(body | members)
    return service.http.post(f"/{TASKS.get(name, 'label')}", content=content)


def ask(service, name, sequences, **members):
    """The predictions of sequences [t, F]."""
    response = post(service, name, sequences, **members)
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


def begin(service, name, frames=FRAMES[:11]):
    """The token of a sequence that has begun."""
    (prediction,) = ask(service, name, [frames], return_state=True)
    return prediction["state"]


def send_parts(services, name, sequences, parts):
    """The predictions of sequences that are sent in parts. Each request has the next part
    of all current sequences; the requests go to the services in turn."""
    answers, taken, turn = [[] for _ in sequences], [0] * len(sequences), 0
    while turn < max(first + len(lengths) for first, lengths in parts):
        places, sent, states = [], [], []
        for place, (first, lengths) in enumerate(parts):
            if first <= turn < first + len(lengths):
                start = taken[place]
                taken[place] += lengths[turn - first]
                places.append(place)
                sent.append(sequences[place][start : taken[place]])
                states.append(answers[place][-1]["state"] if start else None)
        service = services[turn % len(services)]
        if sent:
            predictions = ask(service, name, sent, states=states, return_state=True)
            for place, prediction in zip(places, predictions, strict=True):
                assert prediction["steps"] == taken[place]
                answers[place].append(prediction)
        turn += 1
    return answers


def assert_close(probabilities, expected):
    arrays = (np.array(rows, np.float32) for rows in (probabilities, expected))
    np.testing.assert_allclose(*arrays, atol=1e-5, strict=True)


def assert_as_the_whole(service, name, sequences, parts, answers):
    """The predictions of parts are those of the whole; of a classifier, those of the
    sequence up to each part."""
    classes = service.registry.get(name).metadata.classes
    if TASKS[name] == "label":
        wholes = ask(service, name, sequences)
        for whole, predictions in zip(wholes, answers, strict=True):
            rows = [
                row for prediction in predictions for row in prediction["probabilities"]
            ]
            assert_close(rows, whole["probabilities"])
            labels = [
                label for prediction in predictions for label in prediction["labels"]
            ]
            assert labels == [classes[best] for best in np.argmax(rows, 1)]
        return
    ends = [np.cumsum(lengths).tolist() for _, lengths in parts]
    prefixes = [s[:n] for s, some in zip(sequences, ends, strict=True) for n in some]
    predictions = [prediction for some in answers for prediction in some]
    wholes = ask(service, name, prefixes)
    for prediction, whole in zip(predictions, wholes, strict=True):
        probabilities = prediction["probabilities"]
        assert_close(probabilities, whole["probabilities"])
        assert prediction["probability"] == max(probabilities)
        assert prediction["label"] == classes[np.argmax(probabilities)]


def random_sequences(seed, parts):
    rng = np.random.default_rng(seed)
    return [random_frames(rng, sum(lengths)) for _, lengths in parts]


def assert_refused(response, status, slug, *paths):
    """The response is this error, in these fields; return the problem details."""
    assert response.status_code == status, response.text
    problem = response.json()
    assert problem["type"] == f"urn:unrolled:error:{slug}"
    assert tuple(error["path"] for error in problem.get("errors", [])) == paths
    return problem


@pytest.mark.parametrize("name", TASKS)
class TestParts:
    @given(parts=PARTS, seed=st.integers(0, 2**32 - 1))
    def test_wherever_cut(self, service, name, parts, seed):
        """Several sequences that begin and end in different requests, each cut anywhere,
        get the answers of the whole."""
        sequences = random_sequences(seed, parts)
        answers = send_parts([service], name, sequences, parts)
        assert_as_the_whole(service, name, sequences, parts, answers)

    @pytest.mark.slow
    @given(parts=PARTS, seed=st.integers(0, 2**32 - 1))
    def test_two_services(self, onnx, tensorflow, name, parts, seed):
        """The parts may go to services with different engines: the same key and bundle are
        enough."""
        sequences = random_sequences(seed, parts)
        for services in ([onnx, tensorflow], [tensorflow, onnx]):
            answers = send_parts(services, name, sequences, parts)
            assert_as_the_whole(services[0], name, sequences, parts, answers)

    def test_lengths(self, service, name):
        """Parts may have a single step, or so many that they take several engine calls."""
        for parts in (
            [(0, [1] * 30), (3, [1] * 20)],
            [(0, [1, 1500, 499]), (1, [700, 1, 300])],
        ):
            sequences = random_sequences(1, parts)
            answers = send_parts([service], name, sequences, parts)
            assert_as_the_whole(service, name, sequences, parts, answers)

    def test_reused(self, onnx, name):
        """A token can be used more than once, in one request or in several."""
        token, rng = begin(onnx, name), np.random.default_rng(3)
        ends = [random_frames(rng, 5), random_frames(rng, 9)]
        together = ask(onnx, name, ends, states=[token, token])
        single = [ask(onnx, name, [end], states=[token])[0] for end in ends]
        wholes = ask(onnx, name, [np.concatenate([FRAMES[:11], e]) for e in ends])
        for first, second, whole in zip(together, single, wholes, strict=True):
            expected = whole["probabilities"]
            if TASKS[name] == "label":
                expected = expected[11:]
            assert_close(first["probabilities"], expected)
            assert_close(second["probabilities"], expected)

    def test_top_k(self, onnx, name):
        """`top_k` works as in other requests."""
        members = {"states": [begin(onnx, name)], "return_state": True}
        (plain,) = ask(onnx, name, [FRAMES[11:]], **members)
        (top,) = ask(onnx, name, [FRAMES[11:]], top_k=1, **members)
        assert "probabilities" not in top
        assert (top["steps"], len(top["state"])) == (30, len(plain["state"]))
        if TASKS[name] == "label":
            assert [step[0]["label"] for step in top["top"]] == plain["labels"]
        else:
            assert [choice["label"] for choice in top["top"]] == [plain["label"]]


@pytest.mark.parametrize("name", TASKS)
class TestMembers:
    def test_without(self, onnx, name):
        """Without `return_state` a prediction has neither steps nor state."""
        (plain,) = ask(onnx, name, [FRAMES])
        assert not {"steps", "state"} & set(plain)
        for members in (
            {"return_state": False},
            {"states": None},
            {"states": [None]},
            {"states": [None], "return_state": False},
        ):
            assert set(ask(onnx, name, [FRAMES], **members)[0]) == set(plain)

    def test_return_state(self, onnx, name):
        """`return_state` adds the steps and the token of each sequence, and changes
        nothing else."""
        sequences = [FRAMES[:4], FRAMES, FRAMES[:1]]
        plain = ask(onnx, name, sequences)
        predictions = ask(onnx, name, sequences, return_state=True)
        assert [prediction.pop("steps") for prediction in predictions] == [4, 30, 1]
        tokens = [prediction.pop("state") for prediction in predictions]
        assert len(set(tokens)) == 3
        assert len(set(map(len, tokens))) == 1
        for prediction, expected in zip(predictions, plain, strict=True):
            assert set(prediction) == set(expected)
            assert_close(prediction["probabilities"], expected["probabilities"])

    def test_states(self, onnx, name):
        """`states` alone resumes, and returns no token. null starts afresh, also beside a
        sequence that resumes."""
        token = begin(onnx, name)
        (whole,) = ask(onnx, name, [FRAMES])
        (rest,) = ask(onnx, name, [FRAMES[11:]], states=[token])
        assert set(rest) == set(whole)
        expected = whole["probabilities"]
        rows = expected[11:] if TASKS[name] == "label" else expected
        assert_close(rest["probabilities"], rows)
        sequences = [FRAMES, FRAMES[11:]]
        for states in ([None, None], [None, token]):
            members = {"states": states, "return_state": True}
            first, second = ask(onnx, name, sequences, **members)
            assert_close(first["probabilities"], expected)
            assert first["steps"] == 30
            assert second["steps"] == (30 if states[1] else 19)


def test_bidirectional(onnx):
    """A bidirectional network neither returns a state nor takes one; the error names the
    models of its task that do. Without states it answers."""
    token = begin(onnx, "tags")
    for members in (
        {"return_state": True},
        {"states": [token]},
        {"states": ["c4n4ry"]},
        {"states": [None], "return_state": True},
    ):
        response = post(onnx, "both", [FRAMES], **members)
        problem = assert_refused(response, 422, "not-streamable")
        assert problem["detail"].endswith("can be streamed: tags")
    (plain,) = ask(onnx, "both", [FRAMES])
    (prediction,) = ask(onnx, "both", [FRAMES], states=[None])
    assert set(prediction) == set(plain)
    assert_close(prediction["probabilities"], plain["probabilities"])


class TestTokens:
    def test_changed(self, onnx):
        """A token that was changed is refused by its place before anything is computed,
        and nothing of it is repeated."""
        for name in TASKS:
            text, token = onnx.metrics(), begin(onnx, name)
            before = value(text, "unrolled_sequence_steps_count", model=name)
            for changed in ("c4n4ry", token[:-1], f" {token}", token.swapcase()):
                states = [token, changed, None]
                response = post(onnx, name, [FRAMES] * 3, states=states)
                assert_refused(response, 422, "invalid-state", "states[1]")
                assert "c4n4ry" not in response.text
                assert token[8:16] not in response.text
            text = onnx.metrics()
            after = value(text, "unrolled_sequence_steps_count", model=name)
            assert after == before + 1  # of `begin`
            assert value(text, "unrolled_waiting_steps", model=name) == 0

    def test_another_key(self, onnx, running_server):
        """A token of a service with another key is refused with that reason."""
        for name in TASKS:
            for source, other in ((onnx, running_server), (running_server, onnx)):
                token = begin(source, name)
                response = post(other, name, [FRAMES], states=[token])
                problem = assert_refused(response, 422, "invalid-state", "states[0]")
                assert "another key" in problem["detail"]
                assert ask(source, name, [FRAMES], states=[token])

    def test_conflicts(self, onnx, bundles, tmp_path):
        """A token of another version, model or bundle is a conflict with that reason; a new
        sequence is answered."""
        first = bundles / "walks" / "1"
        copy_bundle(first, tmp_path / "walks" / "1")
        copy_bundle(first, tmp_path / "walks" / "2", version="2")
        copy_bundle(first, tmp_path / "also" / "1", name="also")
        copy_bundle(bundles / "tags" / "1", tmp_path / "tags" / "1", dropout=0.25)
        settings = Settings(port=0, bundles=tmp_path, workers=1, state_key=KEY)
        with running(settings, start=START) as altered:
            for name, served, reason in (
                ("walks", "walks", "belongs to version 1 of walks, not 2"),
                ("walks", "also", "belongs to the model walks, not also"),
                ("walks", "tags", "belongs to the model walks, not tags"),
                ("tags", "tags", "belongs to another bundle named tags 1"),
            ):
                token = begin(onnx, name)
                task = altered.registry.get(served).metadata.task
                body = {"model": served, "sequences": [FRAMES.tolist()]}
                response = altered.http.post(
                    f"/{task}", json=body | {"states": [token]}
                )
                problem = assert_refused(response, 409, "state-conflict", "states[0]")
                assert problem["errors"][0]["message"] == reason
                assert problem["detail"] == f"states[0] {reason}"
                assert altered.http.post(f"/{task}", json=body).status_code == 200

    @pytest.mark.slow
    def test_precision(self, quantized):
        """A token of another precision is a conflict; int8 resumes from its own."""
        settings = {"bundles": quantized, "port": 0, "workers": 1, "state_key": KEY}
        members = {"states": [None], "return_state": True}
        tokens = {}
        for precision in ("int8", "float32"):
            with running(Settings(precision=precision, **settings)) as service:
                (summary,) = service.http.get("/models").json()["models"]
                assert summary["precision"] == precision
                (whole,) = ask(service, "small", [FRAMES])
                (start,) = ask(service, "small", [FRAMES[:11]], **members)
                tokens[precision] = token = start["state"]
                (rest,) = ask(service, "small", [FRAMES[11:]], states=[token])
                rows = start["probabilities"] + rest["probabilities"]
                tolerance = {"int8": 0.1, "float32": 1e-5}[precision]
                np.testing.assert_allclose(rows, whole["probabilities"], atol=tolerance)
                if precision == "float32":
                    states = [tokens["int8"]]
                    response = post(service, "small", [FRAMES], states=states)
        problem = assert_refused(response, 409, "state-conflict", "states[0]")
        assert "int8 weights, not float32" in problem["detail"]

    def test_signed_elsewhere(self, onnx, bundles):
        """The key and the bundle are all that a valid token takes."""
        walks = bundle.read(bundles / "walks" / "1")
        keys = state_tokens.load_keys(Settings(state_key=KEY))
        signer = TokenSigner(keys, walks.metadata, walks.digest, "float32")
        zeros = np.zeros(walks.metadata.state_size, np.float32)
        token = signer.sign(State(2**40, zeros.tobytes()))
        members = {"states": [token], "return_state": True}
        (prediction,) = ask(onnx, "walks", [FRAMES], **members)
        (plain,) = ask(onnx, "walks", [FRAMES])
        assert prediction["steps"] == 2**40 + 30
        assert_close(prediction["probabilities"], plain["probabilities"])


@pytest.mark.parametrize("name", TASKS)
class TestLarge:
    def test_many_sequences(self, running_server, name):
        """A hundred sequences whose request is decoded in another process, and whose
        response is encoded there, are answered in order."""
        rng = np.random.default_rng(5)
        cuts = [(int(n), int(m)) for n, m in rng.integers(20, 60, (100, 2))]
        sequences = [random_frames(rng, n + m) for n, m in cuts]
        starts = [s[:n] for s, (n, _) in zip(sequences, cuts, strict=True)]
        rests = [s[n:] for s, (n, _) in zip(sequences, cuts, strict=True)]
        first = ask(running_server, name, starts, return_state=True)
        states = [prediction["state"] for prediction in first]
        states[3::5] = [None] * 20
        response = post(running_server, name, rests, states=states, return_state=True)
        assert len(response.request.content) > INLINE_BYTES
        if TASKS[name] == "label":
            assert len(response.content) > 2 * INLINE_BYTES
        wholes = ask(running_server, name, sequences)
        single = ask(running_server, name, rests)
        for place, prediction in enumerate(response.json()["predictions"]):
            whole, rows = wholes[place]["probabilities"], prediction["probabilities"]
            fresh = states[place] is None
            before, after = cuts[place]
            assert prediction["steps"] == (0 if fresh else before) + after
            if fresh:
                whole = single[place]["probabilities"]
            elif TASKS[name] == "label":
                rows = first[place]["probabilities"] + rows
            assert_close(rows, whole)
