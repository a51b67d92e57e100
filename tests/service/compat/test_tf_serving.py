"""TensorFlow Serving's REST API v1, as its documentation describes it."""

import json

import numpy as np
import pytest
import requests

from tests.service.compat.protocols import FRAME, ask, refused
from tests.support.servers import (
    CLASSES,
    LENGTHS,
    SECONDS,
    TASKS,
    native_answers,
    sequences_of,
)

# Of states: hidden, sum and count, last frames and count; hidden, cell.
SIZES = {"walks": 20, "tags": 10}
LARGE = 64 * 1024  # bytes; a larger body is decoded in another process


def rows_of(name, lengths=LENGTHS):
    """Random sequences as lists."""
    return [frames.tolist() for frames in sequences_of(name, lengths)]


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
                expected = native_answers(http, name, rows)
                assert_same(answer[key], expected)
                if TASKS[name] == "label":
                    assert list(map(len, answer[key])) == list(LENGTHS)

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
        whole = native_answers(http, name, rows)
        if TASKS[name] == "classify":
            assert_same(all_answers[-1], whole)
        else:
            assert_same(np.concatenate(all_answers, 1), whole)

    def test_bare_rows(self, http):
        """Without states the rows start anew, also in the bare form."""
        body = bare([[FRAME]]) | {"signature_name": "step"}
        (row,) = ask(http, "walks:predict", body)["predictions"]
        assert_same([row["probabilities"]], native_answers(http, "walks", [[FRAME]]))
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
        expected = native_answers(http, "walks", [[FRAME]])
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
        expected = native_answers(http, "walks", [[FRAME]])
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
            assert [label for label, _ in result] == CLASSES["walks"]
            expected = native_answers(http, "walks", [row])[0]
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
