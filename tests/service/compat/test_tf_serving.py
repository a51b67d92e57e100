"""TensorFlow Serving's REST API: what its documentation has clients send, answered."""

import json
import shutil

import numpy as np
import pytest
import requests

from service.settings import Settings
from tests.support.bundles import OnnxEngine, copy_bundle, random_frames
from tests.support.servers import SECONDS, running

TASKS = {"walks": "classify", "tags": "label", "both": "label"}
WALKS = ["run", "sit", "stand", "wälk"]
SIZES = {"walks": 6, "tags": 10}  # of the states; an LSTM has two
FRAME = [1, 2, 3]
LENGTHS = [1, 2, 7, 3]  # of rows
LARGE = 64 * 1024  # bytes, above which another process parses


@pytest.fixture
def http(running_server):
    return running_server.http


@pytest.fixture(scope="module")
def versions(bundles, tmp_path_factory):
    """A service with two versions of a model, the older one of which has a label."""
    root = tmp_path_factory.mktemp("versions")
    copy_bundle(bundles / "walks" / "1", root / "walks" / "1")
    copy_bundle(bundles / "walks" / "1", root / "walks" / "2", version="2")
    (root / "walks" / "labels.json").write_text('{"stable": 1}')
    settings = Settings(port=0, bundles=root, workers=1)
    with running(settings, load_engine=OnnxEngine) as made:
        yield made
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def limited(bundles):
    """A service with small limits."""
    limits = {"max_sequences": 4, "max_steps": 20, "max_cells": 90}
    settings = Settings(port=0, bundles=bundles, workers=1, **limits)
    with running(settings, load_engine=OnnxEngine) as made:
        yield made.http


def rows_of(name, lengths=LENGTHS):
    rng = np.random.default_rng(len(name))
    return [random_frames(rng, length).tolist() for length in lengths]


def alone(http, name, row):
    """What the service's own API says of a sequence."""
    body = {"model": name, "sequences": [row]}
    response = http.post(f"/{TASKS[name]}", json=body)
    return response.json()["predictions"][0]["probabilities"]


def ask(http, path, body):
    """The answer to a body, a good one."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = http.post(f"/v1/models/{path}", content=content)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def refused(response, status):
    """The text of a refusal."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    return response.json()["error"]


def assert_same(given, expected):
    """These probabilities, row by row."""
    assert len(given) == len(expected)
    for one, other in zip(given, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def bare(rows):
    return {"instances": rows}


def objects(rows):
    return {"instances": [{"frames": row} for row in rows]}


def with_lengths(rows):
    """Each of one length, of which the row says how much is meant."""
    longest = max(map(len, rows))
    padded = [row + [[9e9] * 3] * (longest - len(row)) for row in rows]
    pairs = zip(padded, rows, strict=True)
    return {"instances": [{"frames": a, "lengths": len(b)} for a, b in pairs]}


def column(rows):
    return {"inputs": rows}


def named_column(rows):
    return {"inputs": {"frames": rows}}


def column_with_lengths(rows):
    padded = [row["frames"] for row in with_lengths(rows)["instances"]]
    return {"inputs": {"frames": padded, "lengths": list(map(len, rows))}}


def examples(rows):
    return {"examples": [{"frames": row} for row in rows]}


FORMS = [bare, objects, with_lengths, column, named_column, column_with_lengths]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
class TestPredict:
    def test_forms(self, http, name, form):
        """Rows of different lengths, in each form that there is, are answered in that
        form, each at its own length, as the service's own API answers them."""
        rows = rows_of(name)
        body = form(rows)
        answer = ask(http, f"{name}:predict", body)
        member = "predictions" if "instances" in body else "outputs"
        assert list(answer) == [member]
        assert_same(answer[member], [alone(http, name, row) for row in rows])
        if TASKS[name] == "label":
            assert list(map(len, answer[member])) == LENGTHS

    def test_large(self, http, name, form):
        """A body that another process parses gets the same answers."""
        rows = rows_of(name, [100 + place % 7 for place in range(40)])
        body = form(rows)
        assert len(json.dumps(body)) > LARGE
        ((_, answers),) = ask(http, f"{name}:predict", body).items()
        alike = [ask(http, f"{name}:predict", form([row])) for row in rows[:5]]
        assert len(answers) == len(rows)
        assert_same(answers[:5], [next(iter(one.values()))[0] for one in alike])


@pytest.mark.parametrize("signature", ["serving_default", ""])
def test_default_signature(http, signature):
    """The signature that is there by default may also be named."""
    body = bare([[FRAME]])
    assert ask(http, "walks:predict", body | {"signature_name": signature}) == ask(
        http, "walks:predict", body
    )


class TestStep:
    def step(self, http, name, rows, states, *, by_row):
        """The answers and states of a step, in one of the forms."""
        inputs = {"frames": rows} | ({"state": states} if states else {})
        body = {"signature_name": "step", "inputs": inputs}
        if by_row:
            pairs = [dict(zip(inputs, one)) for one in zip(*inputs.values())]  # noqa: B905
            body = {"signature_name": "step", "instances": pairs}
        answer = ask(http, f"{name}:predict", body)
        if by_row:
            told = answer["predictions"]
            assert all(set(one) == {"probabilities", "state"} for one in told)
            return [one["probabilities"] for one in told], [
                one["state"] for one in told
            ]
        assert set(answer["outputs"]) == {"probabilities", "state"}
        return answer["outputs"]["probabilities"], answer["outputs"]["state"]

    @pytest.mark.parametrize("by_row", [True, False], ids=["rows", "columns"])
    @pytest.mark.parametrize("name", SIZES)
    def test_parts(self, http, name, by_row):
        """Sequences in parts, with the states that came back, end in what they give
        whole."""
        rows, states, told = rows_of(name, [8, 8]), [], []
        for at in range(0, 8, 2):
            parts = [row[at : at + 2] for row in rows]
            answers, states = self.step(http, name, parts, states, by_row=by_row)
            assert [len(state) for state in states] == [SIZES[name]] * 2
            told.append(answers)
        whole = [alone(http, name, row) for row in rows]
        if TASKS[name] == "classify":
            assert_same(told[-1], whole)
        else:
            assert_same(np.concatenate(told, 1), whole)

    def test_bare_rows(self, http):
        """Without states the rows begin, in the bare form too."""
        body = bare([[FRAME]]) | {"signature_name": "step"}
        (told,) = ask(http, "walks:predict", body)["predictions"]
        assert_same([told["probabilities"]], [alone(http, "walks", [FRAME])])
        assert len(told["state"]) == SIZES["walks"]


ROW = {"frames": [FRAME]}
ZEROS = [0] * SIZES["walks"]


def step(**inputs):
    return {"signature_name": "step", "inputs": {"frames": [[FRAME]]} | inputs}


def bad(body, told, id):
    """A body, and a word of its refusal."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return pytest.param(content, told, id=id)


BAD = [
    bad(b"", "", "empty"),
    bad(b"{", "", "no-json"),
    bad([], "body", "list"),
    bad({}, "either", "neither"),
    bad(bare([[FRAME]]) | column([[FRAME]]), "either", "both"),
    bad(bare(None), "either", "null"),
    bad(bare([]), "instances must not", "no-instances"),
    bad(column([]), "inputs must not", "no-inputs"),
    bad(named_column([]), "inputs.frames", "no-frames"),
    bad({"inputs": {}}, "inputs", "no-input"),
    bad(bare([[]]), "instances[0]", "no-steps"),
    bad(bare([[FRAME], []]), "instances[1]", "no-steps-later"),
    bad(bare([FRAME]), "instances", "flat-row"),
    bad(bare([[[1, 2]]]), "instances[0][0]", "features"),
    bad(bare([[[1, 2, "3"]]]), "instances", "text"),
    bad(bare([[[1, 2, None]]]), "instances", "null-number"),
    bad(bare([[[1, 2, True]]]), "instances", "true"),
    bad(bare([[FRAME], ROW]), "all lists", "mixed-rows"),
    bad(bare([ROW, [FRAME]]), "all lists", "mixed-rows-turned"),
    bad(bare([ROW, ROW | {"lengths": 1}]), "same", "mixed-members"),
    bad(bare([ROW | {"more": 1}]), "instances", "unknown-input"),
    bad({"inputs": ROW | {"more": 1}}, "inputs", "unknown-column"),
    bad(bare([{"b64": "AAAA"}]), "instances", "b64"),
    bad({"inputs": {"frames": {"b64": "AA"}}}, "inputs", "b64-in"),
    bad(bare([ROW | {"lengths": 0}]), "instances[0]", "length-0"),
    bad(bare([ROW | {"lengths": 2}]), "instances[0]", "length-2"),
    bad(bare([ROW | {"lengths": -1}]), "instances[0]", "length--1"),
    bad(bare([ROW | {"lengths": 2**64}]), "", "length-huge"),
    bad(bare([ROW | {"lengths": True}]), "lengths", "length-true"),
    bad(bare([ROW | {"lengths": "1"}]), "lengths", "length-text"),
    bad(
        {"inputs": {"frames": [[FRAME]], "lengths": [1, 1]}},
        "lengths has 2",
        "more-lengths",
    ),
    bad(
        {"inputs": {"frames": [[FRAME]], "lengths": []}}, "lengths has 0", "no-lengths"
    ),
    bad(bare([[FRAME]]) | {"signature_name": "other"}, "signature_name", "signature"),
    bad(bare([[FRAME]]) | {"signature_name": 1}, "signature_name", "number"),
    bad(
        {"inputs": {"frames": [[FRAME]], "state": [ZEROS]}},
        "signature step",
        "state-of-default",
    ),
    bad(step(state=[ZEROS[1:]]), "state", "state-short"),
    bad(step(state=[ZEROS, ZEROS]), "state has 2", "states-more"),
    bad(step(state=[[1e39] + ZEROS[1:]]), "finite", "state-1e39"),
    bad(step(state=ZEROS), "state", "state-flat"),
    bad(b'{"instances": [[[1, 2, NaN]]]}', "", "NaN"),
    bad(b'{"instances": [[[1, 2, Infinity]]]}', "", "Infinity"),
    bad(b'{"instances": [[[1, 2, -Infinity]]]}', "", "-Infinity"),
    bad(bare([[[1, 2, 1e39]]]), "instances[0][0][2]", "1e39"),
    bad(b'{"inputs": [[[1, 2, 1e999]]]}', "", "1e999"),
]


class TestRefused:
    @pytest.mark.parametrize(("body", "told"), BAD)
    @pytest.mark.parametrize("padding", [0, LARGE], ids=["small", "large"])
    def test_body(self, http, body, told, padding):
        """What can't be taken is 400 and says where, wherever it is parsed."""
        response = http.post("/v1/models/walks:predict", content=body + b" " * padding)
        assert told in refused(response, 400)
        assert ask(http, "walks:predict", bare([[FRAME]]))

    def test_extreme_state(self, http):
        """A state to which the network has no finite answer is its caller's fault."""
        body = step(state=[[-3e38] * SIZES["walks"]])
        assert refused(http.post("/v1/models/walks:predict", json=body), 400)

    @pytest.mark.parametrize("row", [{"frames": [FRAME], "x": 1}, {"x": 1}])
    def test_members(self, http, row):
        """An unknown input is not told to be a member of the body instead."""
        for body in (bare([row]), {"inputs": row}):
            response = http.post("/v1/models/walks:predict", json=body)
            assert "signature_name" not in refused(response, 400)

    def test_step_in_both_directions(self, http):
        """A network that can't be stepped has no such signature."""
        response = http.post("/v1/models/both:predict", json=step())
        assert "signature_name" in refused(response, 400)

    @pytest.mark.parametrize(
        "lengths",
        [
            pytest.param([1] * 5, id="sequences"),
            pytest.param([21], id="steps"),
            pytest.param([16, 15], id="numbers"),
        ],
    )
    @pytest.mark.parametrize("form", [*FORMS, examples], ids=lambda form: form.__name__)
    def test_limits(self, limited, lengths, form):
        """What is over a limit is 413, in each form; what is just within is not."""
        verb = "classify" if form is examples else "predict"
        rows = [[FRAME] * length for length in lengths]
        response = limited.post(f"/v1/models/walks:{verb}", json=form(rows))
        assert "at most" in refused(response, 413)
        within = form([rows[0][1:], *rows[1:]] if len(rows) < 5 else rows[1:])
        response = limited.post(f"/v1/models/walks:{verb}", json=within)
        assert response.status_code == 200, response.text


class TestTaken:
    @pytest.mark.parametrize(
        "kind",
        [
            None,
            "",
            "application/json",
            "application/json; charset=utf-8",
            "application/octet-stream",
            "application/x-www-form-urlencoded",
            "text/plain",
            "multipart/form-data; boundary=x",
        ],
    )
    def test_any_type(self, server, http, kind):
        """A body has any media type, or none, as `requests` sends it."""
        with requests.Session() as session:
            session.trust_env = False
            response = session.post(
                f"{server}/v1/models/walks:predict",
                data=json.dumps(bare([[FRAME]])),
                headers={"Content-Type": kind},
                timeout=SECONDS,
            )
        assert response.status_code == 200
        assert_same(response.json()["predictions"], [alone(http, "walks", [FRAME])])

    def test_other_members(self, http):
        """Members beside those that are known are ignored."""
        body = bare([[FRAME]]) | {"model_name": "x", "parameters": {"deep": [[1]]}}
        assert ask(http, "walks:predict", body) == ask(
            http, "walks:predict", bare([[FRAME]])
        )

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/models/walks/versions/1:predict",
            "/v1/models/walks/versions/01:predict",
            "/v1/models/walks/labels/latest:predict",
            "/v1/models/walks@1:predict",
            "/v1/models/walks%401:predict",
            "/v1/models/%77al%6bs:predict",
            "/V1/Models/walks:Predict",
            "/v1/models/walks/Versions/1:PREDICT",
            "/v1/models/walks:predict?a=1&a=2",
        ],
    )
    def test_path(self, http, path):
        """A model, its version or label may be written in many ways."""
        response = http.post(path, json=bare([[FRAME]]))
        assert response.status_code == 200, response.text
        assert_same(response.json()["predictions"], [alone(http, "walks", [FRAME])])


BAD_EXAMPLES = [
    bad({}, "examples", "nothing"),
    bad(examples([]), "examples must", "no-example"),
    bad(examples([[]]), "examples[0]", "no-step"),
    bad(examples([[FRAME], FRAME[1:]]), "examples[1]", "numbers"),
    bad(examples([[[1, 2]]]), "examples[0]", "features"),
    bad(examples([[FRAME, 1]]), "examples[0]", "mixed"),
    bad({"examples": [FRAME]}, "examples", "no-name"),
    bad({"examples": [{"x": FRAME}]}, "examples", "other-feature"),
    bad(examples([["1", "2", "3"]]), "examples", "texts"),
    bad(b'{"examples": [{"frames": [NaN, 1, 2]}]}', "", "NaN"),
    bad(examples([FRAME]) | {"signature_name": "step"}, "signature", "step"),
]


class TestClassify:
    def test_results(self, http):
        """Each example, its numbers in a row or step by step, has every class with
        its probability, in the model's order."""
        rows = rows_of("walks")
        flat = [[number for frame in row for number in frame] for row in rows]
        told = ask(http, "walks:classify", examples(rows))
        assert told == ask(http, "walks:classify", examples(flat))
        assert list(told) == ["results"]
        for result, row in zip(told["results"], rows, strict=True):
            assert [label for label, _ in result] == WALKS
            assert_same([[p for _, p in result]], [alone(http, "walks", row)])

    def test_large(self, http):
        """A large body gets the same as small ones."""
        rows = rows_of("walks", [400] * 12)
        assert len(json.dumps(examples(rows))) > LARGE
        told = ask(http, "walks:classify", examples(rows))["results"]
        for result, row in zip(told, rows, strict=True):
            (small,) = ask(http, "walks:classify", examples([row]))["results"]
            assert_same([[p for _, p in result]], [[p for _, p in small]])

    def test_other_members(self, http):
        """What TensorFlow Serving takes beside the examples is no reason to refuse."""
        more = {"signature_name": "serving_default", "context": {}}
        body = examples([[FRAME]])
        told = ask(http, "walks:classify", body)
        assert ask(http, "walks:classify", body | more) == told

    @pytest.mark.parametrize(("body", "told"), BAD_EXAMPLES)
    def test_refused(self, http, body, told):
        """What can't be taken is 400 and says where."""
        response = http.post("/v1/models/walks:classify", content=body)
        assert told in refused(response, 400)

    @pytest.mark.parametrize("name", ["tags", "both"])
    def test_labels(self, http, name):
        """A model with classes for each step is for `:predict`, and says so."""
        response = http.post(f"/v1/models/{name}:classify", json=examples([[FRAME]]))
        assert ":predict" in refused(response, 400)

    @pytest.mark.parametrize("name", TASKS)
    def test_regress(self, http, name):
        """No network here has a number for an answer."""
        response = http.post(f"/v1/models/{name}:regress", json=examples([[FRAME]]))
        assert ":predict" in refused(response, 400)


def status_of(version):
    told = {"error_code": "OK", "error_message": ""}
    return {"version": version, "state": "AVAILABLE", "status": told}


class TestModels:
    @pytest.mark.parametrize(
        ("path", "served"),
        [
            ("walks", ["2", "1"]),
            ("walks/", ["2", "1"]),
            ("walks/versions/1", ["1"]),
            ("walks/versions/2", ["2"]),
            ("walks/labels/stable", ["1"]),
            ("walks/labels/latest", ["2"]),
            ("walks@stable", ["1"]),
        ],
    )
    def test_status(self, versions, path, served):
        """The versions that are meant, newest first, and what KServe asks for."""
        told = versions.http.get(f"/v1/models/{path}").json()
        wanted = {"model_version_status": list(map(status_of, served))}
        assert told == wanted | {"name": "walks", "ready": True}

    @pytest.mark.parametrize(
        ("path", "version"),
        [("", "2"), ("/versions/1", "1"), ("/labels/stable", "1")],
    )
    def test_versions(self, versions, path, version):
        """The model that is meant is told, and answers."""
        told = versions.http.get(f"/v1/models/walks{path}/metadata").json()
        spec = {"name": "walks", "signature_name": "", "version": version}
        assert told["model_spec"] == spec
        assert ask(versions.http, f"walks{path}:predict", bare([[FRAME]]))

    @pytest.mark.parametrize("name", TASKS)
    def test_metadata(self, http, bundles, name):
        """The signatures are those of the SavedModel, as protobuf writes them in JSON:
        each tensor's type, and its sizes as texts."""
        from google.protobuf import json_format
        from tensorflow.core.protobuf import saved_model_pb2

        saved = saved_model_pb2.SavedModel()
        path = bundles / name / "1" / "saved_model.pb"
        saved.ParseFromString(path.read_bytes())
        there = saved.meta_graphs[0].signature_def
        told = http.get(f"/v1/models/{name}/metadata").json()
        assert set(told) == {"model_spec", "metadata"}
        made = told["metadata"]["signature_def"]["signature_def"]
        assert set(made) == {"serving_default", *(["step"] if name in SIZES else [])}
        for signature, about in made.items():
            wanted = json_format.MessageToDict(
                there[signature],
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            for kind in ("inputs", "outputs"):
                assert set(about[kind]) == set(wanted[kind])
                for key, tensor in about[kind].items():
                    # What a tensor is called in the graph is no one's business.
                    assert tensor | {"name": ""} == wanted[kind][key] | {"name": ""}
            assert about["method_name"] == wanted["method_name"]

    @pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/V1/MODELS"])
    def test_names(self, http, path):
        """The names of all models, as KServe's client asks for them."""
        assert http.get(path).json() == {"models": ["both", "tags", "walks"]}

    def test_alive(self, http):
        """KServe's client finds out at the root whether the server lives."""
        told = http.get("/").json()
        assert told["status"] == "alive"


class TestNothingThere:
    @pytest.mark.parametrize("end", ["", "/metadata", ":predict", ":classify"])
    @pytest.mark.parametrize(
        "name",
        ["nobody", "Walks", "walks%00", "walks/versions/2", "walks/labels/x", "walks@"],
    )
    def test_model(self, http, name, end):
        """A model, version or label that there is not is 404, in the words of
        TensorFlow Serving."""
        method = "POST" if ":" in end else "GET"
        response = http.request(method, f"/v1/models/{name}{end}", content=b"{}")
        assert refused(response, 404).startswith("Servable not found for request: ")

    @pytest.mark.parametrize(
        "path",
        [
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
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "POST"])
    def test_path(self, http, path, method):
        """Another path is a malformed request, as there."""
        response = http.request(method, path)
        assert refused(response, 400).startswith("Malformed request")

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", "walks:predict", "POST"),
            ("PUT", "walks:predict", "POST"),
            ("OPTIONS", "walks:classify", "POST"),
            ("GET", "walks:regress", "POST"),
            ("POST", "walks", "GET"),
            ("DELETE", "walks/versions/1", "GET"),
            ("POST", "walks/metadata", "GET"),
        ],
    )
    def test_method(self, http, method, path, allowed):
        """Another method is refused with the one that works."""
        response = http.request(method, f"/v1/models/{path}")
        assert allowed in refused(response, 405)
        assert response.headers["allow"] == allowed
