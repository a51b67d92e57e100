"""The OpenAPI document: valid, complete, and with examples that run; its web pages."""

import json
import re

import pytest
from fastapi.openapi.models import OpenAPI

from service import errors
from service.codecs import native

VERBS = {"Check", "Classify", "Describe", "Get", "Label", "List", "Open", "Read"}


@pytest.fixture
def document(http):
    return http.get("/openapi.json").json()


def resolved(document, node):
    """The node that a reference refers to; another node as it is."""
    for part in node.get("$ref", "").split("/")[1:]:
        document = document[part]
    return document if "$ref" in node else node


def operations(document):
    return [
        (path, operation)
        for path, methods in document["paths"].items()
        for operation in methods.values()
    ]


def test_valid(document):
    """The document is valid OpenAPI 3.1. Every operation has an id of its own and
    declares each parameter of its path."""
    assert document["openapi"].startswith("3.1.")
    OpenAPI.model_validate(document)
    ids = []
    for path, operation in operations(document):
        ids.append(operation["operationId"])
        parameters = operation.get("parameters", [])
        named = {p["name"] for p in parameters if p["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path))
    assert len(ids) == len(set(ids))
    assert {"classify", "label"} <= set(ids)


def test_references(document):
    """Every reference resolves within the document."""

    def references(node):
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                yield from references(child)

    lost = set()
    for reference in references(document):
        root, *parts = reference.split("/")
        assert root == "#"
        node = document
        for part in parts:
            node = node.get(part) if isinstance(node, dict) else None
        if node is None:
            lost.add(reference)
    assert lost == set()


def test_summaries(document):
    """Every operation has a summary of its own and a description; its
    tag has a description too."""
    tags = {tag["name"] for tag in document["tags"] if tag["description"]}
    summaries = {}
    for path, operation in operations(document):
        assert set(operation["tags"]) <= tags
        assert operation["description"]
        assert operation["summary"].split()[0] in VERBS
        summaries.setdefault(operation["summary"], []).append(path)
    shared = [paths for paths in summaries.values() if len(paths) > 1]
    assert list(map(sorted, shared)) == [["/healthz", "/livez"]]


def test_errors_are_described_once(http, document):
    """Operations refer to one response for each status, which names its kinds of errors.
    A real error fits its schema."""
    used = set()
    for _, operation in operations(document):
        for status, response in operation["responses"].items():
            if "$ref" in response:
                assert response == {"$ref": f"#/components/responses/Problem{status}"}
                used.add(f"Problem{status}")
            elif status != "200":
                assert status == "503"  # of a probe
    responses = document["components"]["responses"]
    assert set(responses) == used
    for name, response in responses.items():
        kinds = re.findall(r"- `([a-z-]+)`: \w", response["description"])
        content = response["content"]["application/problem+json"]
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert content["example"]["type"] == f"urn:unrolled:error:{kinds[0]}"
        assert content["example"]["status"] == int(name.removeprefix("Problem"))
    for error in errors.ServiceError.__subclasses__():
        response = responses.get(f"Problem{error.status}")
        assert response is None or f"`{error.slug}`" in response["description"]
    problem = http.post("/classify", json={"sequences": [[[1]]]}).json()
    schema = document["components"]["schemas"]["Problem"]
    assert set(schema["required"]) <= set(problem) <= set(schema["properties"])


def test_errors_are_declared(document):
    """The document has every error that a prediction can meet, as problem details."""
    for path in ("/classify", "/label"):
        responses = document["paths"][path]["post"]["responses"]
        expected = {"200", "400", "404", "409", "413", "415", "422", "503"}
        assert expected <= set(responses)
        for status in expected - {"200"}:
            response = resolved(document, responses[status])
            assert set(response["content"]) == {"application/problem+json"}


@pytest.mark.parametrize("path", ["/classify", "/label"])
def test_members_are_declared(http, document, path):
    """The document has every member of a request and of a prediction."""
    operation = document["paths"][path]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    fields = native.PredictBody.__struct_fields__
    schema = resolved(document, content["schema"])
    assert set(schema["properties"]) == set(fields)
    members = set()
    for example in content["examples"].values():
        for top_k in (None, 1):
            body = example["value"] | {"top_k": top_k}
            (prediction,) = http.post(path, json=body).json()["predictions"]
            members |= set(prediction)
    content = operation["responses"]["200"]["content"]["application/json"]
    response = resolved(document, content["schema"])["properties"]
    declared = resolved(document, response["predictions"]["items"])["properties"]
    assert set(declared) == members | ({"tokens", "spans"} & set(declared))  # of text
    for name in ("steps", "state"):
        assert declared[name]["description"]


def test_examples_run(http, document):
    """Each example runs as it stands. There is one for every model, and another for
    every streamable one."""
    names = []
    for path in ("/classify", "/label"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        for name, example in content["application/json"]["examples"].items():
            response = http.post(path, json=example["value"])
            assert response.status_code == 200, response.text
            model, _, resumable = name.partition(", ")
            assert response.json()["model"] == model
            (prediction,) = response.json()["predictions"]
            assert ("state" in prediction) == bool(resumable)
            names.append(name)
    streamable = ["tags", "tags, resumable", "walks", "walks, resumable"]
    assert sorted(names) == ["both", *streamable]


def test_stream_examples_run(http, document):
    """The stream example of each streamable model runs as it stands."""
    operation = document["paths"]["/stream"]["post"]
    content = operation["requestBody"]["content"]["application/x-ndjson"]
    assert sorted(content["examples"]) == ["tags", "walks"]
    parameters = [parameter["name"] for parameter in operation["parameters"]]
    assert parameters == ["model", "top_k"]
    for name, example in content["examples"].items():
        response = http.post(f"/stream?model={name}", content=example["value"])
        assert response.status_code == 200, response.text
        *answers, last = map(json.loads, response.text.splitlines())
        assert len(answers) == example["value"].count("frames") > 0
        assert all("error" not in answer for answer in answers)
        assert (last["end"], last["steps"]) == ("done", len(answers))


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_pages_need_no_network(http, path):
    """The documentation pages load nothing from another host, and all that they load
    is there."""
    page = http.get(path)
    assert page.status_code == 200
    loaded = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page.text)
    assert loaded
    for link in loaded:
        assert not re.match(r"(https?:)?//", link), link
        assert http.get(link).status_code == 200, link
