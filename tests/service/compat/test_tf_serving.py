"""TensorFlow Serving's REST API v1, as its documentation describes it."""

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
LARGE = 64 * 1024  # bytes; a larger body is decoded in another process


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
    with running(settings, load_engine=OnnxEngine) as service:
        yield service
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def limited(bundles):
    """A service with small limits."""
    limits = {"max_sequences": 4, "max_steps": 20, "max_cells": 90}
    settings = Settings(port=0, bundles=bundles, workers=1, **limits)
    with running(settings, load_engine=OnnxEngine) as service:
        yield service.http


def rows_of(name, lengths=LENGTHS):
    rng = np.random.default_rng(len(name))
    return [random_frames(rng, length).tolist() for length in lengths]


def native_answer(http, name, row):
    """The answer of the service's own API to a sequence."""
    body = {"model": name, "sequences": [row]}
    response = http.post(f"/{TASKS[name]}", json=body)
    return response.json()["predictions"][0]["probabilities"]


def ask(http, path, body):
    """The JSON of a successful response."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = http.post(f"/v1/models/{path}", content=content)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def refused(response, status):
    """The text of an error response."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    return response.json()["error"]


def assert_same(result, expected):
    """Compare probabilities row by row."""
    assert len(result) == len(expected)
    for row, expected_row in zip(result, expected, strict=True):
        np.testing.assert_allclose(row, expected_row, atol=1e-5)


def bare(rows):
    return {"instances": rows}


def objects(rows):
    return {"instances": [{"frames": row} for row in rows]}


def with_lengths(rows):
    """Rows padded to one length, each with its own."""
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


class TestPredict:
    def test_forms(self, http):
        """Rows of different lengths, in each form, are answered in that form, each at its
        own length, with the answers of the service's own API."""
        for form in FORMS:
            for name in TASKS:
                rows = rows_of(name)
                body = form(rows)
                answer = ask(http, f"{name}:predict", body)
                key = "predictions" if "instances" in body else "outputs"
                assert list(answer) == [key]
                expected = [native_answer(http, name, row) for row in rows]
                assert_same(answer[key], expected)
                if TASKS[name] == "label":
                    assert list(map(len, answer[key])) == LENGTHS

    def test_large(self, http):
        """A body that another process decodes gets the same answers."""
        for form, name in zip(FORMS, [*TASKS, *TASKS], strict=True):
            rows = rows_of(name, [100 + index % 7 for index in range(40)])
            body = form(rows)
            assert len(json.dumps(body)) > LARGE
            ((_, answers),) = ask(http, f"{name}:predict", body).items()
            assert len(answers) == len(rows)
            small = [ask(http, f"{name}:predict", form([row])) for row in rows[:5]]
            assert_same(answers[:5], [next(iter(s.values()))[0] for s in small])

    def test_default_signature(self, http):
        """The default signature may be named; unknown fields are ignored."""
        expected = ask(http, "walks:predict", bare([[FRAME]]))
        for fields in (
            {"signature_name": "serving_default"},
            {"signature_name": ""},
            {"model_name": "x", "parameters": {"deep": [[1]]}},
        ):
            assert ask(http, "walks:predict", bare([[FRAME]]) | fields) == expected


class TestStep:
    def step(self, http, name, rows, states, *, by_row):
        """The probabilities and states after a step, by row or by column."""
        inputs = {"frames": rows} | ({"state": states} if states else {})
        body = {"signature_name": "step", "inputs": inputs}
        if by_row:
            pairs = [dict(zip(inputs, row)) for row in zip(*inputs.values())]  # noqa: B905
            body = {"signature_name": "step", "instances": pairs}
        answer = ask(http, f"{name}:predict", body)
        if by_row:
            rows = answer["predictions"]
            assert all(set(row) == {"probabilities", "state"} for row in rows)
            return [r["probabilities"] for r in rows], [r["state"] for r in rows]
        assert set(answer["outputs"]) == {"probabilities", "state"}
        return answer["outputs"]["probabilities"], answer["outputs"]["state"]

    @pytest.mark.parametrize("by_row", [True, False], ids=["rows", "columns"])
    @pytest.mark.parametrize("name", SIZES)
    def test_parts(self, http, name, by_row):
        """Sequences in parts, each continuing from the last state, end like whole ones."""
        rows, states, all_answers = rows_of(name, [8, 8]), [], []
        for start in range(0, 8, 2):
            parts = [row[start : start + 2] for row in rows]
            answers, states = self.step(http, name, parts, states, by_row=by_row)
            assert [len(state) for state in states] == [SIZES[name]] * 2
            all_answers.append(answers)
        whole = [native_answer(http, name, row) for row in rows]
        if TASKS[name] == "classify":
            assert_same(all_answers[-1], whole)
        else:
            assert_same(np.concatenate(all_answers, 1), whole)

    def test_bare_rows(self, http):
        """Without states the rows start anew, also in the bare form."""
        body = bare([[FRAME]]) | {"signature_name": "step"}
        (row,) = ask(http, "walks:predict", body)["predictions"]
        assert_same([row["probabilities"]], [native_answer(http, "walks", [FRAME])])
        assert len(row["state"]) == SIZES["walks"]


ROW = {"frames": [FRAME]}
ZEROS = [0] * SIZES["walks"]


def step(**inputs):
    return {"signature_name": "step", "inputs": {"frames": [[FRAME]]} | inputs}


BAD = [
    (b"", ""),
    (b"{", ""),
    ([], "body"),
    ({}, "either"),
    (bare([[FRAME]]) | column([[FRAME]]), "either"),
    (bare(None), "either"),
    (bare([]), "instances must not"),
    (column([]), "inputs must not"),
    (named_column([]), "inputs.frames"),
    ({"inputs": {}}, "inputs"),
    (bare([[]]), "instances[0]"),
    (bare([[FRAME], []]), "instances[1]"),
    (bare([FRAME]), "instances"),
    (bare([[[1, 2]]]), "instances[0][0]"),
    (bare([[[1, 2, "3"]]]), "instances"),
    (bare([[[1, 2, None]]]), "instances"),
    (bare([[[1, 2, True]]]), "instances"),
    (bare([[FRAME], ROW]), "all lists"),
    (bare([ROW, [FRAME]]), "all lists"),
    (bare([ROW, ROW | {"lengths": 1}]), "same"),
    (bare([ROW | {"more": 1}]), "instances"),
    ({"inputs": ROW | {"more": 1}}, "inputs"),
    (bare([{"b64": "AAAA"}]), "instances"),
    ({"inputs": {"frames": {"b64": "AA"}}}, "inputs"),
    (bare([ROW | {"lengths": 0}]), "instances[0]"),
    (bare([ROW | {"lengths": 2}]), "instances[0]"),
    (bare([ROW | {"lengths": -1}]), "instances[0]"),
    (bare([ROW | {"lengths": 2**64}]), ""),
    (bare([ROW | {"lengths": True}]), "lengths"),
    (bare([ROW | {"lengths": "1"}]), "lengths"),
    ({"inputs": {"frames": [[FRAME]], "lengths": [1, 1]}}, "lengths has 2"),
    ({"inputs": {"frames": [[FRAME]], "lengths": []}}, "lengths has 0"),
    (bare([[FRAME]]) | {"signature_name": "other"}, "signature_name"),
    (bare([[FRAME]]) | {"signature_name": 1}, "signature_name"),
    ({"inputs": {"frames": [[FRAME]], "state": [ZEROS]}}, "signature step"),
    (step(state=[ZEROS[1:]]), "state"),
    (step(state=[ZEROS, ZEROS]), "state has 2"),
    (step(state=[[1e39] + ZEROS[1:]]), "finite"),
    (step(state=ZEROS), "state"),
    (b'{"instances": [[[1, 2, NaN]]]}', ""),
    (b'{"instances": [[[1, 2, 3]]], "ignored": "\xff"}', ""),
    (b'{"instances": [[[1, 2, Infinity]]]}', ""),
    (b'{"instances": [[[1, 2, -Infinity]]]}', ""),
    (bare([[[1, 2, 1e39]]]), "instances[0][0][2]"),
    (b'{"inputs": [[[1, 2, 1e999]]]}', ""),
]


class TestRefused:
    def test_body(self, http):
        """An invalid body is 400 and its error names the field, wherever it is decoded."""
        for body, message in BAD:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            for padding in (0, LARGE):
                text = content + b" " * padding
                response = http.post("/v1/models/walks:predict", content=text)
                assert message in refused(response, 400), body
        assert ask(http, "walks:predict", bare([[FRAME]]))

    def test_extreme_state(self, http):
        """A state for which the network has no finite answer is the client's error."""
        body = step(state=[[-3e38] * SIZES["walks"]])
        assert refused(http.post("/v1/models/walks:predict", json=body), 400)

    def test_fields(self, http):
        """An unknown input is not reported as a field of the body."""
        for row in ({"frames": [FRAME], "x": 1}, {"x": 1}):
            for body in (bare([row]), {"inputs": row}):
                response = http.post("/v1/models/walks:predict", json=body)
                assert "signature_name" not in refused(response, 400)

    def test_bidirectional(self, http):
        """A bidirectional network has no signature `step`."""
        response = http.post("/v1/models/both:predict", json=step())
        assert "signature_name" in refused(response, 400)

    def test_limits(self, limited):
        """A request over a limit is 413 in each form; one just within is not."""
        for form in [*FORMS, examples]:
            verb = "classify" if form is examples else "predict"
            for lengths in ([1] * 5, [21], [16, 15]):
                rows = [[FRAME] * length for length in lengths]
                response = limited.post(f"/v1/models/walks:{verb}", json=form(rows))
                assert "at most" in refused(response, 413)
                within = rows[1:] if len(rows) == 5 else [rows[0][1:], *rows[1:]]
                response = limited.post(f"/v1/models/walks:{verb}", json=form(within))
                assert response.status_code == 200, response.text


class TestTaken:
    def test_any_type(self, server, http):
        """A body may have any media type, or none, as `requests` sends it."""
        expected = [native_answer(http, "walks", [FRAME])]
        with requests.Session() as session:
            session.trust_env = False
            for kind in (None, "", "application/octet-stream", "text/plain"):
                response = session.post(
                    f"{server}/v1/models/walks:predict",
                    data=json.dumps(bare([[FRAME]])),
                    headers={"Content-Type": kind},
                    timeout=SECONDS,
                )
                assert response.status_code == 200
                assert_same(response.json()["predictions"], expected)

    def test_path(self, http):
        """A model, its version or label may be written in many ways."""
        expected = [native_answer(http, "walks", [FRAME])]
        for path in (
            "/v1/models/walks/versions/1:predict",
            "/v1/models/walks/versions/01:predict",
            "/v1/models/walks/labels/latest:predict",
            "/v1/models/walks@1:predict",
            "/v1/models/walks%401:predict",
            "/v1/models/%77al%6bs:predict",
            "/V1/Models/walks:Predict",
            "/v1/models/walks/Versions/1:PREDICT",
            "/v1/models/walks:predict?a=1&a=2",
        ):
            response = http.post(path, json=bare([[FRAME]]))
            assert response.status_code == 200, response.text
            assert_same(response.json()["predictions"], expected)


BAD_EXAMPLES = [
    ({}, "examples"),
    (examples([]), "examples must"),
    (examples([[]]), "examples[0]"),
    (examples([[FRAME], FRAME[1:]]), "examples[1]"),
    (examples([[[1, 2]]]), "examples[0]"),
    (examples([[FRAME, 1]]), "examples[0]"),
    ({"examples": [FRAME]}, "examples"),
    ({"examples": [{"x": FRAME}]}, "examples"),
    (examples([["1", "2", "3"]]), "examples"),
    (b'{"examples": [{"frames": [NaN, 1, 2]}]}', ""),
    (examples([FRAME]) | {"signature_name": "step"}, "signature"),
]


class TestClassify:
    def test_results(self, http):
        """Each example, its numbers flat or by step, has every class with its
        probability, in the model's order."""
        rows = rows_of("walks")
        flat = [[number for frame in row for number in frame] for row in rows]
        answer = ask(http, "walks:classify", examples(rows))
        assert answer == ask(http, "walks:classify", examples(flat))
        assert list(answer) == ["results"]
        for result, row in zip(answer["results"], rows, strict=True):
            assert [label for label, _ in result] == WALKS
            expected = native_answer(http, "walks", row)
            assert_same([[p for _, p in result]], [expected])

    def test_large(self, http):
        """A large body gets the same answers as small ones."""
        rows = rows_of("walks", [400] * 12)
        assert len(json.dumps(examples(rows))) > LARGE
        results = ask(http, "walks:classify", examples(rows))["results"]
        for result, row in zip(results, rows, strict=True):
            (small,) = ask(http, "walks:classify", examples([row]))["results"]
            assert_same([[p for _, p in result]], [[p for _, p in small]])

    def test_other_fields(self, http):
        """TensorFlow Serving's other fields are accepted."""
        more = {"signature_name": "serving_default", "context": {}}
        body = examples([[FRAME]])
        answer = ask(http, "walks:classify", body)
        assert ask(http, "walks:classify", body | more) == answer

    def test_refused(self, http):
        """An invalid body is 400 and its error names the field."""
        for body, message in BAD_EXAMPLES:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            response = http.post("/v1/models/walks:classify", content=content)
            assert message in refused(response, 400), body

    def test_labels(self, http):
        """A model with classes for each step refers to `:predict`, and so does any model
        whose regression is asked for."""
        for path in ("tags:classify", "both:classify", "walks:regress", "tags:regress"):
            response = http.post(f"/v1/models/{path}", json=examples([[FRAME]]))
            assert ":predict" in refused(response, 400)


def status_of(version):
    status = {"error_code": "OK", "error_message": ""}
    return {"version": version, "state": "AVAILABLE", "status": status}


class TestModels:
    def test_status(self, versions):
        """The versions of a reference, newest first, with KServe's fields."""
        for path, served in (
            ("walks", ["2", "1"]),
            ("walks/", ["2", "1"]),
            ("walks/versions/1", ["1"]),
            ("walks/versions/2", ["2"]),
            ("walks/labels/stable", ["1"]),
            ("walks/labels/latest", ["2"]),
            ("walks@stable", ["1"]),
        ):
            statuses = {"model_version_status": list(map(status_of, served))}
            response = versions.http.get(f"/v1/models/{path}")
            assert response.json() == statuses | {"name": "walks", "ready": True}

    def test_versions(self, versions):
        """A version or a label in the path chooses the model that answers."""
        for path, version in (("", "2"), ("/versions/1", "1"), ("/labels/stable", "1")):
            metadata = versions.http.get(f"/v1/models/walks{path}/metadata").json()
            spec = {"name": "walks", "signature_name": "", "version": version}
            assert metadata["model_spec"] == spec
            assert ask(versions.http, f"walks{path}:predict", bare([[FRAME]]))

    @pytest.mark.slow
    def test_metadata(self, http, bundles):
        """The signatures are those of the SavedModel, as protobuf writes them in JSON:
        each tensor's type, and its dimensions as texts."""
        from google.protobuf import json_format
        from tensorflow.core.protobuf import saved_model_pb2

        for name in TASKS:
            saved = saved_model_pb2.SavedModel()
            path = bundles / name / "1" / "saved_model.pb"
            saved.ParseFromString(path.read_bytes())
            exported = saved.meta_graphs[0].signature_def
            answer = http.get(f"/v1/models/{name}/metadata").json()
            assert set(answer) == {"model_spec", "metadata"}
            signatures = answer["metadata"]["signature_def"]["signature_def"]
            steps = ["step"] if name in SIZES else []
            assert set(signatures) == {"serving_default", *steps}
            for key, signature in signatures.items():
                expected = json_format.MessageToDict(
                    exported[key],
                    preserving_proto_field_name=True,
                    always_print_fields_with_no_presence=True,
                )
                for kind in ("inputs", "outputs"):
                    assert set(signature[kind]) == set(expected[kind])
                    for key, tensor in signature[kind].items():
                        # The tensor's name in the graph may differ.
                        other = expected[kind][key] | {"name": ""}
                        assert tensor | {"name": ""} == other
                assert signature["method_name"] == expected["method_name"]

    def test_names(self, http):
        """The names of all models, and the state of the server, as KServe's client asks
        for them."""
        for path in ("/v1/models", "/v1/models/", "/V1/MODELS"):
            assert http.get(path).json() == {"models": ["both", "tags", "walks"]}
        assert http.get("/").json()["status"] == "alive"


class TestNothingThere:
    def test_model(self, http):
        """An unknown model, version or label is 404, in TensorFlow Serving's words."""
        for name in ("nobody", "Walks", "walks/versions/2", "walks/labels/x", "walks@"):
            for end in ("", "/metadata", ":predict", ":classify"):
                method, path = (
                    "POST" if ":" in end else "GET",
                    f"/v1/models/{name}{end}",
                )
                response = http.request(method, path, content=b"{}")
                message = refused(response, 404)
                assert message.startswith("Servable not found for request: ")

    def test_path(self, http):
        """An unknown path is a malformed request, as in TensorFlow Serving."""
        for path in (
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
        ):
            for method in ("GET", "POST"):
                response = http.request(method, path)
                assert refused(response, 400).startswith("Malformed request")

    def test_method(self, http):
        """Another method is refused with the one that is allowed."""
        for method, path, allowed in (
            ("GET", "walks:predict", "POST"),
            ("PUT", "walks:predict", "POST"),
            ("OPTIONS", "walks:classify", "POST"),
            ("GET", "walks:regress", "POST"),
            ("POST", "walks", "GET"),
            ("DELETE", "walks/versions/1", "GET"),
            ("POST", "walks/metadata", "GET"),
        ):
            response = http.request(method, f"/v1/models/{path}")
            assert allowed in refused(response, 405)
            assert response.headers["allow"] == allowed
