"""Sequences that come in parts, over real servers: every answer is that of the whole,
wherever it was cut and whoever computes the next part."""

import concurrent.futures
import json
import os
import signal
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.bundle import bundle
from service.codecs.process import INLINE_BYTES
from service.pool import spawn
from service.registry import state_tokens
from service.registry.state_tokens import State, TokenSigner
from service.settings import Settings
from service.worker import engine as engines
from tests.support.bundles import copy_bundle, random_frames
from tests.support.processes import family, processes, serving, standing_still
from tests.support.servers import SECONDS, Running, running, value, wait

KEY, NEW = "a key of the tests", "a newer key of the tests"
TASKS = {"walks": "classify", "tags": "label"}
FRAMES = random_frames(np.random.default_rng(0), 30)
# Of sequences, how they are cut, and in which request each begins.
PARTS = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(1, 40), min_size=1, max_size=5)),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def services(bundles):
    """A service for each engine, all with one key."""
    with ExitStack() as stack:
        made = {}
        for engine in engines.ENGINES:
            chosen = Settings(
                port=0, bundles=bundles, engine=engine, workers=2, state_key=KEY
            )
            # TensorFlow is imported here already; in a process it takes seconds.
            thread = spawn.thread(engines.ENGINES)
            start = thread if engine == "tensorflow" else spawn.process
            made[engine] = stack.enter_context(running(chosen, start=start))
            loaded = made[engine].registry.models.values()
            assert {model.loaded.engine for model in loaded} == {engine}
        yield made


@pytest.fixture(scope="module", params=engines.ENGINES)
def service(services, request):
    return services[request.param]


@pytest.fixture(scope="module")
def rotated(bundles):
    """A service whose key has been changed, and which accepts the old one."""
    chosen = Settings(
        port=0, bundles=bundles / "walks", workers=1, state_key=f"{NEW}, {KEY}"
    )
    with running(chosen) as made:
        yield made


@pytest.fixture(scope="module")
def altered(bundles, tmp_path_factory):
    """A service with the key of the others, and other bundles: a second version
    of `walks`, `walks` under another name, and another `tags` 1."""
    root = tmp_path_factory.mktemp("altered")
    first = bundles / "walks" / "1"
    copy_bundle(first, root / "walks" / "1")
    copy_bundle(first, root / "walks" / "2", version="2")
    copy_bundle(first, root / "also" / "1", name="also")
    copy_bundle(bundles / "tags" / "1", root / "tags" / "1", dropout=0.25)
    chosen = Settings(port=0, bundles=root, workers=1, state_key=KEY)
    with running(chosen) as made:
        yield made


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


def take(services, name, sequences, parts):
    """The predictions of sequences that are sent in parts, in each request the next
    part of all that have begun and not ended, the requests by turns to the services."""
    answers, taken, turn = [[] for _ in sequences], [0] * len(sequences), 0
    while turn < max(late + len(lengths) for late, lengths in parts):
        places, sent, states = [], [], []
        for place, (late, lengths) in enumerate(parts):
            if late <= turn < late + len(lengths):
                start = taken[place]
                taken[place] += lengths[turn - late]
                places.append(place)
                sent.append(sequences[place][start : taken[place]])
                states.append(answers[place][-1]["state"] if start else None)
        service = services[turn % len(services)]
        if sent:
            told = ask(service, name, sent, states=states, return_state=True)
            for place, prediction in zip(places, told, strict=True):
                assert prediction["steps"] == taken[place]
                answers[place].append(prediction)
        turn += 1
    return answers


def assert_close(given, expected):
    given, expected = (np.array(rows, np.float32) for rows in (given, expected))
    np.testing.assert_allclose(given, expected, atol=1e-5, strict=True)


def assert_as_the_whole(service, name, sequences, parts, answers):
    """The predictions of parts are those of the whole, of a classifier after each
    part; every member of them fits."""
    classes = service.registry.get(name).metadata.classes
    if TASKS[name] == "label":
        for whole, some in zip(ask(service, name, sequences), answers, strict=True):
            rows = [row for one in some for row in one["probabilities"]]
            assert_close(rows, whole["probabilities"])
            labels = [label for one in some for label in one["labels"]]
            assert labels == [classes[best] for best in np.argmax(rows, 1)]
        return
    ends = [np.cumsum(lengths).tolist() for _, lengths in parts]
    begun = [s[:n] for s, some in zip(sequences, ends, strict=True) for n in some]
    given = [prediction for some in answers for prediction in some]
    for one, whole in zip(given, ask(service, name, begun), strict=True):
        assert_close(one["probabilities"], whole["probabilities"])
        assert one["probability"] == max(one["probabilities"])
        assert one["label"] == classes[np.argmax(one["probabilities"])]


def sequences_of(seed, parts):
    rng = np.random.default_rng(seed)
    return [random_frames(rng, sum(lengths)) for _, lengths in parts]


def assert_refused(response, status, slug, *paths):
    """It is a refusal of that kind which names these paths; its problem details."""
    assert response.status_code == status, response.text
    problem = response.json()
    assert problem["type"] == f"urn:unrolled:error:{slug}"
    assert tuple(error["path"] for error in problem.get("errors", [])) == paths
    return problem


@pytest.mark.parametrize("name", TASKS)
class TestInParts:
    @settings(max_examples=25)
    @given(parts=PARTS, seed=st.integers(0, 2**32 - 1))
    def test_wherever_cut(self, service, name, parts, seed):
        """Several sequences that begin and end in other requests, each cut anywhere,
        get the answers of the whole, with either engine and cell."""
        sequences = sequences_of(seed, parts)
        answers = take([service], name, sequences, parts)
        assert_as_the_whole(service, name, sequences, parts, answers)

    @settings(max_examples=15)
    @given(parts=PARTS, seed=st.integers(0, 2**32 - 1))
    def test_by_turns(self, services, name, parts, seed):
        """So they do where the requests go by turns to services with other engines:
        the same key and bundle is all that is needed."""
        sequences = sequences_of(seed, parts)
        turns = list(services.values())
        for order in (turns, turns[::-1]):
            answers = take(order, name, sequences, parts)
            assert_as_the_whole(order[0], name, sequences, parts, answers)

    def test_step_by_step(self, service, name):
        """A step a request is as good as all at once."""
        parts = [(0, [1] * 30), (3, [1] * 20)]
        sequences = sequences_of(1, parts)
        answers = take([service], name, sequences, parts)
        assert_as_the_whole(service, name, sequences, parts, answers)

    def test_long(self, service, name):
        """Parts that take many engine calls change nothing either."""
        parts = [(0, [1, 1500, 499]), (1, [700, 1, 300])]
        sequences = sequences_of(2, parts)
        answers = take([service], name, sequences, parts)
        assert_as_the_whole(service, name, sequences, parts, answers)

    def test_again(self, service, name):
        """A token can be used more than once, and each time leads from where it was:
        two ends of one beginning, in one request or in two."""
        token, rng = begin(service, name), np.random.default_rng(3)
        ends = [random_frames(rng, 5), random_frames(rng, 9)]
        together = ask(service, name, ends, states=[token, token])
        alone = [ask(service, name, [end], states=[token])[0] for end in ends]
        wholes = ask(service, name, [np.concatenate([FRAMES[:11], e]) for e in ends])
        for one, other, whole in zip(together, alone, wholes, strict=True):
            expected = whole["probabilities"]
            if TASKS[name] == "label":
                expected = expected[11:]
            assert_close(one["probabilities"], expected)
            assert_close(other["probabilities"], expected)

    def test_top_k(self, service, name):
        """`top_k` shortens the answers of parts as it does others."""
        token = begin(service, name)
        members = {"states": [token], "return_state": True}
        (plain,) = ask(service, name, [FRAMES[11:]], **members)
        (top,) = ask(service, name, [FRAMES[11:]], top_k=1, **members)
        assert "probabilities" not in top
        assert (top["steps"], len(top["state"])) == (30, len(plain["state"]))
        if TASKS[name] == "label":
            assert [step[0]["label"] for step in top["top"]] == plain["labels"]
        else:
            assert [choice["label"] for choice in top["top"]] == [plain["label"]]


@pytest.mark.parametrize("name", TASKS)
class TestMembers:
    def test_without_either(self, running_server, name):
        """Who asks for no state gets the members of before, and no other."""
        (plain,) = ask(running_server, name, [FRAMES])
        assert not {"steps", "state"} & set(plain)
        for members in (
            {"return_state": False},
            {"states": None},
            {"states": [None]},
            {"states": [None], "return_state": False},
        ):
            assert set(ask(running_server, name, [FRAMES], **members)[0]) == set(plain)

    def test_return_only(self, running_server, name):
        """`return_state` adds the steps and the token of each, and changes nothing
        else."""
        sequences = [FRAMES[:4], FRAMES, FRAMES[:1]]
        plain = ask(running_server, name, sequences)
        given = ask(running_server, name, sequences, return_state=True)
        assert [prediction.pop("steps") for prediction in given] == [4, 30, 1]
        tokens = [prediction.pop("state") for prediction in given]
        assert len(set(tokens)) == 3
        assert len(set(map(len, tokens))) == 1
        for one, other in zip(given, plain, strict=True):
            assert set(one) == set(other)
            assert_close(one["probabilities"], other["probabilities"])

    def test_states_only(self, running_server, name):
        """`states` alone goes on, and gives no token."""
        token = begin(running_server, name)
        (whole,) = ask(running_server, name, [FRAMES])
        (rest,) = ask(running_server, name, [FRAMES[11:]], states=[token])
        assert set(rest) == set(whole)
        last = whole["probabilities"]
        assert_close(
            rest["probabilities"], last[11:] if TASKS[name] == "label" else last
        )

    def test_null_begins(self, running_server, name):
        """null begins a sequence, beside one that goes on and without."""
        token = begin(running_server, name)
        (plain,) = ask(running_server, name, [FRAMES])
        for states in ([None, None], [None, token]):
            given = ask(
                running_server,
                name,
                [FRAMES, FRAMES[11:]],
                states=states,
                return_state=True,
            )
            assert_close(given[0]["probabilities"], plain["probabilities"])
            assert given[0]["steps"] == 30
            assert given[1]["steps"] == (30 if states[1] else 19)

    def test_another_number(self, running_server, name):
        """There are as many states as sequences; another number is refused, and
        nothing is computed."""
        token = begin(running_server, name)
        for count in (0, 1, 3):
            response = post(
                running_server, name, [FRAMES[:2]] * 2, states=[token] * count
            )
            problem = assert_refused(response, 422, "invalid-request", "states")
            assert f"{count} entries for 2 sequences" in problem["errors"][0]["message"]

    @pytest.mark.parametrize("wrong", [1, 0.5, True, {"a": 1}, ["a"]])
    def test_another_type(self, running_server, name, wrong):
        """A state that is no text is refused by its place; so is what is no list of
        them."""
        response = post(running_server, name, [FRAMES] * 2, states=[None, wrong])
        assert_refused(response, 422, "invalid-request", "states[1]")
        response = post(running_server, name, [FRAMES], return_state="yes")
        assert_refused(response, 422, "invalid-request", "return_state")
        if not isinstance(wrong, list):
            response = post(running_server, name, [FRAMES], states=wrong)
            assert_refused(response, 422, "invalid-request", "states")


class TestWhole:
    def test_refused(self, running_server):
        """A network that reads in both directions neither gives a state nor takes
        one, whatever it is, and the models of its task that do are named."""
        token = begin(running_server, "tags")
        for members in (
            {"return_state": True},
            {"states": [token]},
            {"states": ["c4n4ry"]},
            {"states": [None], "return_state": True},
        ):
            response = post(running_server, "both", [FRAMES], **members)
            problem = assert_refused(response, 422, "not-streamable")
            assert problem["detail"].endswith("can be streamed: tags")

    def test_null(self, running_server):
        """Where all begin it answers as ever."""
        (plain,) = ask(running_server, "both", [FRAMES])
        (given,) = ask(running_server, "both", [FRAMES], states=[None])
        assert set(given) == set(plain)
        assert_close(given["probabilities"], plain["probabilities"])


@pytest.mark.parametrize("name", TASKS)
class TestNoToken:
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda token: "c4n4ry", id="word"),
            pytest.param(lambda token: "", id="empty"),
            pytest.param(lambda token: token[:-1], id="cut"),
            pytest.param(lambda token: token + "=", id="padded"),
            pytest.param(lambda token: token + "A" * 4, id="longer"),
            pytest.param(lambda token: f" {token}", id="space"),
            pytest.param(lambda token: f"{token[:50]}\n{token[50:]}", id="line-break"),
            pytest.param(lambda token: token[::-1], id="backwards"),
            pytest.param(lambda token: token.swapcase(), id="other-case"),
        ],
    )
    def test_changed(self, running_server, name, change):
        """What is no token, or has been changed, is refused by its place before
        anything is computed; nothing of it is repeated."""
        text, token = running_server.metrics(), begin(running_server, name)
        before = value(text, "unrolled_sequence_steps_count", model=name)
        changed = change(token)
        response = post(
            running_server, name, [FRAMES] * 3, states=[token, changed, None]
        )
        assert_refused(response, 422, "invalid-state", "states[1]")
        assert "c4n4ry" not in response.text
        assert token[8:16] not in response.text
        text = running_server.metrics()
        after = value(text, "unrolled_sequence_steps_count", model=name)
        assert after == before + 1  # which begun it
        assert value(text, "unrolled_waiting_steps", model=name) == 0

    def test_another_key(self, services, running_server, name):
        """A token of a service with another key is refused, and says so; each goes on
        from its own."""
        ours, theirs = services["onnx"], running_server
        for one, other in ((ours, theirs), (theirs, ours)):
            token = begin(one, name)
            response = post(other, name, [FRAMES], states=[token])
            problem = assert_refused(response, 422, "invalid-state", "states[0]")
            assert "another key" in problem["detail"]
            assert ask(one, name, [FRAMES], states=[token])


class TestRotation:
    def test_old_and_new(self, services, rotated):
        """A sequence that began under the old key goes on under the new one, and from
        then on is none of a service that has the old one only."""
        old, token = services["onnx"], begin(services["onnx"], "walks")
        (whole,) = ask(old, "walks", [FRAMES])
        (middle,) = ask(
            rotated, "walks", [FRAMES[11:20]], states=[token], return_state=True
        )
        token = middle["state"]
        (last,) = ask(rotated, "walks", [FRAMES[20:]], states=[token])
        assert_close(last["probabilities"], whole["probabilities"])
        response = post(old, "walks", [FRAMES[20:]], states=[token])
        assert_refused(response, 422, "invalid-state", "states[0]")


class TestConflicts:
    @pytest.mark.parametrize(
        ("name", "served", "reason"),
        [
            ("walks", "walks", "belongs to version 1 of walks, not 2"),
            ("walks", "also", "belongs to the model walks, not also"),
            ("walks", "tags", "belongs to the model walks, not tags"),
            ("tags", "tags", "belongs to another bundle named tags 1"),
        ],
        ids=["version", "model", "task", "digest"],
    )
    def test_refused(self, services, altered, name, served, reason):
        """A token of another version, model or bundle of that name is a conflict
        that says which; a new sequence is answered."""
        token = begin(services["onnx"], name)
        task = altered.registry.get(served).metadata.task
        body = {"model": served, "sequences": [FRAMES.tolist()]}
        response = altered.http.post(f"/{task}", json=body | {"states": [token]})
        problem = assert_refused(response, 409, "state-conflict", "states[0]")
        assert problem["errors"][0]["message"] == reason
        assert problem["detail"] == f"states[0] {reason}"
        assert altered.http.post(f"/{task}", json=body).status_code == 200

    def test_precision(self, services, quantized):
        """A token of weights of another precision is one too; int8 weights go on from
        their own."""
        chosen = {"bundles": quantized, "port": 0, "workers": 1, "state_key": KEY}
        members = {"states": [None], "return_state": True}
        tokens = {}
        for precision in ("int8", "float32"):
            with running(Settings(precision=precision, **chosen)) as made:
                (summary,) = made.http.get("/models").json()["models"]
                assert summary["precision"] == precision
                (whole,) = ask(made, "small", [FRAMES])
                (begun,) = ask(made, "small", [FRAMES[:11]], **members)
                tokens[precision] = token = begun["state"]
                (rest,) = ask(made, "small", [FRAMES[11:]], states=[token])
                rows = begun["probabilities"] + rest["probabilities"]
                allowed = {"int8": 0.1, "float32": 1e-5}[precision]
                np.testing.assert_allclose(rows, whole["probabilities"], atol=allowed)
                if precision == "float32":
                    response = post(made, "small", [FRAMES], states=[tokens["int8"]])
        problem = assert_refused(response, 409, "state-conflict", "states[0]")
        assert "int8 weights, not float32" in problem["detail"]

    def test_several(self, services):
        """Where one is in conflict and another is none, that one decides; all that
        are at fault are named."""
        service = services["onnx"]
        walks, tags = begin(service, "walks"), begin(service, "tags")
        states = [tags, walks, None, tags, walks[:-1]]
        response = post(service, "walks", [FRAMES] * 5, states=states)
        places = ("states[0]", "states[3]", "states[4]")
        assert_refused(response, 422, "invalid-state", *places)
        response = post(service, "walks", [FRAMES] * 5, states=[*states[:4], None])
        assert_refused(response, 409, "state-conflict", *places[:2])


class TestSigned:
    def test_key_is_what_signs(self, services, bundles):
        """Who has the key and the bundle signs tokens that are taken: nothing else is
        needed of the service that gave them."""
        found = bundle.read(bundles / "walks" / "1")
        keys = state_tokens.load_keys(Settings(state_key=KEY))
        made = TokenSigner(keys, found.metadata, found.digest, "float32")
        zeros = np.zeros(found.metadata.state_size, np.float32)
        token = made.sign(State(2**40, zeros.tobytes()))
        service = services["onnx"]
        (given,) = ask(service, "walks", [FRAMES], states=[token], return_state=True)
        (plain,) = ask(service, "walks", [FRAMES])
        assert given["steps"] == 2**40 + 30
        assert_close(given["probabilities"], plain["probabilities"])


@pytest.mark.parametrize("name", TASKS)
class TestLarge:
    def test_many_sequences(self, running_server, name):
        """A hundred sequences whose states make a body that is read in another
        process, and answers that are written there, are answered in order."""
        rng = np.random.default_rng(5)
        cuts = [(int(n), int(m)) for n, m in rng.integers(20, 60, (100, 2))]
        sequences = [random_frames(rng, n + m) for n, m in cuts]
        begun = [s[:n] for s, (n, _) in zip(sequences, cuts, strict=True)]
        rest = [s[n:] for s, (n, _) in zip(sequences, cuts, strict=True)]
        first = ask(running_server, name, begun, return_state=True)
        states = [one["state"] for one in first]
        states[3::5] = [None] * 20
        response = post(running_server, name, rest, states=states, return_state=True)
        assert len(response.request.content) > INLINE_BYTES
        if TASKS[name] == "label":
            assert len(response.content) > 2 * INLINE_BYTES
        wholes = ask(running_server, name, sequences)
        alone = ask(running_server, name, rest)
        for place, one in enumerate(response.json()["predictions"]):
            whole, rows = wholes[place]["probabilities"], one["probabilities"]
            begins = states[place] is None
            assert one["steps"] == (0 if begins else cuts[place][0]) + cuts[place][1]
            if begins:
                whole = alone[place]["probabilities"]
            elif TASKS[name] == "label":
                rows = first[place]["probabilities"] + rows
            assert_close(rows, whole)

    def test_the_same(self, running_server, name):
        """A body with states is answered, or refused, alike whether it is read here
        or elsewhere: spaces make it large."""
        token = begin(running_server, name)
        for states in ([token], [token[:-1]], [token, None], [1], [None]):
            body = {"model": name, "sequences": [FRAMES.tolist()], "states": states}
            small = json.dumps(body | {"return_state": True})
            large = small[:-1] + " " * INLINE_BYTES + "}"
            path = f"/{TASKS[name]}"
            first, second = (
                running_server.http.post(path, content=text) for text in (small, large)
            )
            assert first.status_code == second.status_code
            told, other = first.json(), second.json()
            if first.status_code == 200:
                (one,), (two,) = told["predictions"], other["predictions"]
                assert one["steps"] == two["steps"]
                assert_close(one["probabilities"], two["probabilities"])
            else:
                assert told.pop("request_id") != other.pop("request_id")
                assert told == other


class TestTraffic:
    def test_no_cross_talk(self, services):
        """Among many callers at once, with both models, those whose sequences come in
        parts and those who send them whole each get their own answers."""
        service = services["onnx"]

        def talk(number):
            rng = np.random.default_rng(number)
            name = list(TASKS)[number % 2]
            with httpx.Client(base_url=service.url, timeout=SECONDS) as http:
                own = Running(service.url, service.app, service.server, http)
                for _ in range(3):
                    parts = [
                        (int(rng.integers(2)), rng.integers(1, 50, 3).tolist())
                        for _ in range(rng.integers(1, 4))
                    ]
                    sequences = sequences_of(rng.integers(2**32), parts)
                    if number % 3:
                        answers = take([own], name, sequences, parts)
                    else:
                        parts = [(0, [len(frames)]) for frames in sequences]
                        answers = [[one] for one in ask(own, name, sequences)]
                    yield name, sequences, parts, answers

        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            talks = [pool.submit(lambda n: list(talk(n)), n) for n in range(24)]
            results = [one.result(SECONDS) for one in talks]
        for told in results:
            for name, *made in told:
                assert_as_the_whole(service, name, *made)
        text = service.metrics()
        for name in TASKS:
            assert value(text, "unrolled_waiting_steps", model=name) == 0


class TestKilled:
    def test_goes_on(self, services, bundles, tmp_path):
        """A service that is killed while parts are under way takes no sequence with
        it: its callers send them again, with the same tokens, to another process with
        the same key, and have the answers of the whole."""

        def part(name, start, stop, state):
            body = {"sequences": [FRAMES[start:stop].tolist()], "states": [state]}
            return body | {"model": name, "return_state": True}

        def send(made, body):
            url = f"{made.url}/{TASKS[body['model']]}"
            response = httpx.post(url, json=body, timeout=SECONDS)
            assert response.status_code == 200, response.text
            return response.json()["predictions"][0]

        def admitted(made):
            text = httpx.get(f"{made.url}/metrics").text
            series = "unrolled_sequence_steps_count"
            return [value(text, series, model=name) for name in TASKS]

        def start(place):
            (tmp_path / place).mkdir()
            flags = ("--bundles", bundles, "--workers", 1)
            return serving(tmp_path / place, *flags, UNROLLED_STATE_KEY=KEY)

        with start("first") as made:
            wait(lambda: made.answers("/readyz"), "it is ready")
            first = {name: send(made, part(name, 0, 11, None)) for name in TASKS}
            again = {n: part(n, 11, 20, one["state"]) for n, one in first.items()}
            everybody = family(made.process)
            with (
                concurrent.futures.ThreadPoolExecutor(2) as pool,
                standing_still(made.process),  # so that they are under way for sure
            ):
                lost = [pool.submit(send, made, body) for body in again.values()]
                wait(lambda: admitted(made) == [2, 2], "they are admitted")
                os.kill(made.process.pid, signal.SIGKILL)
                made.process.wait(SECONDS)
                for one in lost:
                    with pytest.raises(httpx.TransportError):
                        one.result(SECONDS)
            wait(lambda: not everybody & processes().keys(), "none is left")
        with start("second") as made:
            wait(lambda: made.answers("/readyz"), "it is ready")
            for name, body in again.items():
                second = send(made, body)
                third = send(made, part(name, 20, 30, second["state"]))
                parts = [first[name], second, third]
                assert [one["steps"] for one in parts] == [11, 20, 30]
                cuts = [(0, [11, 9, 10])]
                service = services["onnx"]
                assert_as_the_whole(service, name, [FRAMES], cuts, [parts])
        output = [(tmp_path / name / "log").read_text() for name in ("first", "second")]
        for text in output:
            assert KEY not in text
            assert '"level":"warning"' not in text
