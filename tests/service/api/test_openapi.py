"""The OpenAPI document: valid, complete, and with examples that run; its web pages."""

import json
import re

import pytest
from fastapi.openapi.models import OpenAPI

from service.codecs import native


@pytest.fixture
def document(http):
    return http.get("/openapi.json").json()


def test_valid(document):
    """The document is valid OpenAPI 3.1. Every operation has an id of its own and
    declares each parameter of its path."""
    assert document["openapi"].startswith("3.1.")
    OpenAPI.model_validate(document)
    ids = []
    for path, operations in document["paths"].items():
        for operation in operations.values():
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


def test_errors_are_declared(document):
    """The document has every error that a prediction can meet, as problem details."""
    for path in ("/classify", "/label"):
        responses = document["paths"][path]["post"]["responses"]
        expected = {"200", "400", "404", "409", "413", "415", "422", "503"}
        assert expected <= set(responses)
        for status in expected - {"200"}:
            assert set(responses[status]["content"]) == {"application/problem+json"}


@pytest.mark.parametrize("path", ["/classify", "/label"])
def test_members_are_declared(http, document, path):
    """The document has every member of a request and of a prediction."""
    operation = document["paths"][path]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    fields = native.PredictBody.__struct_fields__
    assert set(content["schema"]["properties"]) == set(fields)
    members = set()
    for example in content["examples"].values():
        for top_k in (None, 1):
            body = example["value"] | {"top_k": top_k}
            (prediction,) = http.post(path, json=body).json()["predictions"]
            members |= set(prediction)
    content = operation["responses"]["200"]["content"]["application/json"]
    schemas = document["components"]["schemas"]
    response = schemas[content["schema"]["$ref"].rpartition("/")[2]]["properties"]
    reference = response["predictions"]["items"]["$ref"]
    declared = schemas[reference.rpartition("/")[2]]["properties"]
    assert set(declared) == members
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
