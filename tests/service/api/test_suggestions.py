"""Errors that name what would fit: models for a number of features, and similar names."""

from collections.abc import Iterator

import pytest

from service import errors
from service.settings import Settings
from tests.support.bundles import OnnxEngine
from tests.support.servers import ROOT, Running, running


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    """The shipped bundles, of 28 and 12 features (classify) and of 128 (label)."""
    settings = Settings(port=0, workers=1, bundles=ROOT / "bundles")
    with running(settings, load_engine=OnnxEngine) as service:
        yield service


def refusal(service, path, status, **body):
    response = service.http.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


@pytest.mark.slow
def test_feature_counts(service):
    """An error about the number of features names the model, also the one that was chosen
    by default, and the models that take so many, also those of the other task."""
    default = "digits (the default: the request names no model) takes 28 features"
    for path, features, model, detail in (
        ("/classify", 12, None, f"{default}; models that take 12: vowels"),
        (
            "/classify",
            12,
            "digits",
            "digits takes 28 features; models that take 12: vowels",
        ),
        (
            "/classify",
            28,
            "vowels@1",
            "vowels takes 12 features; models that take 28: digits",
        ),
        (
            "/classify",
            128,
            None,
            f"{default}; models that take 128: letters, letters-live (POST /label)",
        ),
        ("/classify", 3, None, f"{default}; models that take 3: none"),
        (
            "/label",
            28,
            None,
            "letters (the default: the request names no model) takes 128 features;"
            " models that take 28: digits (POST /classify)",
        ),
    ):
        for steps in (1, 5000):  # parsed here, and in another process
            sequence = [[1] * features] * steps
            problem = refusal(service, path, 422, sequences=[sequence], model=model)
            assert problem["detail"] == detail
            assert problem["error_count"] == steps
            first, *_ = problem["errors"]
            assert first["path"] == "sequences[0][0]"
            assert first["message"].startswith(
                f"has {features} features, the model takes"
            )


def test_mixed_features(service):
    """If only some steps have another number of features, no other model is named."""
    sequence = [[1] * 28, [1] * 12]
    problem = refusal(service, "/classify", 422, sequences=[sequence])
    assert problem["detail"] == "the request does not fit the model"
    (error,) = problem["errors"]
    assert error["path"] == "sequences[0][1]"


def test_unknown_model(service):
    """The error for a name that no model has lists the names, and the most similar one."""
    known = (
        "no such model; available: digits, intents, letters, letters-live, tags, vowels"
    )
    for name, detail in (
        ("digit", f"{known}; did you mean digits?"),
        ("Vowels@2", f"{known}; did you mean vowels?"),
        ("letterslive", f"{known}; did you mean letters-live?"),
        ("xyz", known),
        ("x" * 10_000, known),
        ("digits@2", "digits has no such version; available: 1, latest"),
    ):
        problem = refusal(service, "/classify", 404, sequences=[[[1]]], model=name)
        assert problem["detail"] == detail
        if len(name) < 100:
            response = service.http.get(f"/models/{name}")
            assert (response.status_code, response.json()["detail"]) == (404, detail)


def test_many_names():
    """Lists of names are short, however many there are."""
    names = [f"m{index}" for index in range(1000)]
    text = errors.list_names(names)
    assert text.startswith("m0, m1, ")
    assert text.endswith("m19, and 980 more")
    assert errors.list_names(names[:2]) == "m0, m1"
    assert errors.list_names([]) == "none"
    assert errors.did_you_mean("M33", names) == "; did you mean m33?"
    assert errors.did_you_mean("m33" * 10**6, names) == ""
