"""The clients take DataFrames of pandas and polars, and return their columns."""

import numpy as np
import pandas
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.client import Client, RequestError
from service.settings import Settings
from tests.support.bundles import OnnxEngine, random_frames
from tests.support.servers import running
from tests.support.versions import versioned_service

LIBRARIES = {"pandas": pandas.DataFrame, "polars": polars.DataFrame}
FLOATS = st.floats(-100, 100, width=32)


def columns_of(features, sequences, ids):
    """The columns of the sequences, with the column `step`."""
    rows = np.concatenate(sequences)
    lengths = [len(sequence) for sequence in sequences]
    columns = {"run": np.repeat(ids, lengths).tolist()}
    columns["step"] = [step for length in lengths for step in range(length)]
    return columns | {name: rows[:, n].tolist() for n, name in enumerate(features)}


def shuffled(columns, rng):
    """The same columns and rows in another order."""
    names = rng.permutation([*columns]).tolist()
    rows = rng.permutation(len(columns["run"])).tolist()
    return {name: [columns[name][row] for row in rows] for name in names}


@pytest.fixture(scope="module")
def features(server):
    with Client(server) as client:
        return client.model("walks").features


@given(
    sequences=st.lists(
        st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=1, max_size=9),
        min_size=1,
        max_size=6,
    ),
    library=st.sampled_from(sorted(LIBRARIES)),
    task=st.sampled_from(["classify", "label"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
@pytest.mark.slow
def test_any_order(server, features, sequences, library, task, seed):
    """Columns and rows in any order, beside others, give the answers to the arrays."""
    rng = np.random.default_rng(seed)
    arrays = [np.array(s, np.float32) for s in sequences]
    ids = [f"run-{n}" for n in range(len(arrays))]
    columns = columns_of(features, arrays, ids) | {
        "other": ["x"] * sum(map(len, arrays))
    }
    frame = LIBRARIES[library](shuffled(columns, rng))
    with Client(server) as client:
        method = getattr(client, task)
        answer, right = method(frame, by="run"), method(arrays)
    by_id = dict(zip(answer.ids, answer.predictions, strict=True))
    assert sorted(by_id) == sorted(ids)
    for name, prediction in zip(ids, right.predictions, strict=True):
        np.testing.assert_allclose(
            by_id[name].probabilities, prediction.probabilities, atol=1e-6
        )


@pytest.mark.parametrize("library", LIBRARIES)
class TestTables:
    def test_classify(self, server, kind, features, library):
        """`to_dict` has a row for each sequence."""
        rng = np.random.default_rng(0)
        sequences = [random_frames(rng, length) for length in (3, 1, 4)]
        columns = columns_of(features, sequences, ["b", "a", "c"])
        columns["truth"] = ["run"] * 4 + ["sit"] * 4
        frame = LIBRARIES[library](columns)
        answer = kind.client(server).classify(
            frame, by="run", label="truth", model="walks"
        )
        table = answer.to_dict()
        assert answer.ids == table["run"] == ["b", "a", "c"]
        assert table["label"] == [p.label for p in answer.predictions]
        assert table["true_label"] == ["run", "run", "sit"]
        for place, name in enumerate(answer.classes):
            column = [p.probabilities[place] for p in answer.predictions]
            assert table[f"probability_{name}"].tolist() == column
        assert len(LIBRARIES[library](table)) == 3

    def test_label(self, server, kind, features, library):
        """It has a row for each step, if the steps are labelled."""
        rng = np.random.default_rng(0)
        sequences = [random_frames(rng, length) for length in (3, 1)]
        columns = columns_of(features, sequences, ["b", "a"])
        columns["step"] = [2.5, 0.5, 1.5, 7]
        frame = LIBRARIES[library](columns)
        answer = kind.client(server).label(frame, by="run", step="step", model="tags")
        table = answer.to_dict()
        assert table["run"] == ["b", "b", "b", "a"]
        assert table["step"].tolist() == [0.5, 1.5, 2.5, 7]
        assert table["label"] == [x for p in answer.predictions for x in p.labels]
        right = kind.client(server).label([sequences[0][[1, 2, 0]]], model="tags")
        np.testing.assert_allclose(
            answer.predictions[0].probabilities, right.predictions[0].probabilities
        )

    def test_large(self, server, kind, features, library):
        """A DataFrame may have more sequences than a request."""
        sequences = [np.full((1, 3), n, np.float32) for n in range(600)]
        columns = columns_of(features, sequences, [f"{n}" for n in range(600)])
        counts = []
        answer = kind.client(server).classify(
            LIBRARIES[library](columns), by="run", progress=lambda *c: counts.append(c)
        )
        assert answer.ids == [f"{n}" for n in range(600)]
        assert [count for count, _ in counts] == [256, 512, 600]

    def test_refused(self, server, kind, features, library):
        """A missing column, a model that is not there, or a column that no DataFrame
        has is named."""
        client = kind.client(server)
        columns = columns_of(features, [np.zeros((2, 3))], ["a"])
        frame = LIBRARIES[library](columns)
        del columns[features[1]]
        with pytest.raises(ValueError, match="feature 'x1' is missing"):
            client.classify(LIBRARIES[library](columns), by="run")
        with pytest.raises(ValueError, match="'rum' is missing; did you mean 'run'"):
            client.classify(frame, by="rum")
        with pytest.raises(RequestError) as caught:
            client.classify(frame, model="nobody")
        assert caught.value.status == 404
        with pytest.raises(ValueError, match=r"sequences\[0\] is a DataFrame"):
            client.classify([frame])


def test_arrays(server, kind):
    """Arrays have numbers as ids, and no columns to name."""
    client = kind.client(server)
    answer = client.label([np.zeros((2, 3)), np.ones((1, 3))])
    assert answer.ids == ["1", "2"]
    table = answer.to_dict()
    assert table["sequence"] == ["1", "1", "2"]
    assert table["step"].tolist() == [1, 2, 1]
    assert client.classify([np.zeros((2, 3))]).to_dict()["sequence"] == ["1"]
    again = client.label(frames for frames in [np.zeros((2, 3)), np.ones((1, 3))])
    assert again.to_dict()["label"] == table["label"]
    with pytest.raises(ValueError, match="expected a list of sequences, not int"):
        client.classify(5)
    with pytest.raises(ValueError, match="DataFrame"):
        client.classify([np.zeros((2, 3))], by="run")
    with pytest.raises(ValueError, match="top_k"):
        client.classify([np.zeros((2, 3))], top_k=1).to_dict()


def test_no_default(tmp_path, kind):
    """Without a model's name there must be a default model, whose features are used."""
    frame = pandas.DataFrame({"sequence": ["a"], "f0": [7.0]})
    with versioned_service(tmp_path, 1) as service:
        client = kind.client(service.url)
        with pytest.raises(ValueError, match="no model to label by default"):
            client.label(frame)


def test_version_changes(tmp_path, kind):
    """A DataFrame is read again if another version takes the place of the one whose
    features were asked for."""
    with versioned_service(tmp_path, 1, max_sequences=2) as service:
        client = kind.client(service.url)
        (name,) = client.model("made").features
        frame = pandas.DataFrame({"sequence": [*"abcdefgh"], name: [7.0] * 8})
        counts = []

        def swap(done, total):
            counts.append(done)
            if len(counts) == 1:
                service.put(2)
                service.wait_status("made@1", 404)

        answer = client.classify(frame, progress=swap)
        assert answer.version == "2"
        assert {tuple(p.probabilities) for p in answer.predictions} == {(3, 9, 9)}


def test_texts(text_bundles, kind):
    """A DataFrame of texts has the answers of its texts, with its ids and labels."""
    frame = pandas.DataFrame(
        {"text": ["turn on", "naïve"], "ticket": [7, 5], "kind": ["x", "switch-on"]}
    )
    options = {"port": 0, "bundles": text_bundles, "workers": 1}
    with running(Settings(**options), load_engine=OnnxEngine) as service:
        client = kind.client(service.url)
        names = {"by": "ticket", "label": "kind"}
        for table in (frame, polars.from_pandas(frame)):
            answer = client.classify(table, model="commands", **names)
            right = client.classify(["turn on", "naïve"], model="commands")
            assert answer.ids == ["7", "5"]
            for ours, other in zip(answer.predictions, right.predictions, strict=True):
                np.testing.assert_array_equal(ours.probabilities, other.probabilities)
            assert answer.to_dict()["true_label"] == ["x", "switch-on"]
        words = client.label(frame[["text"]], model="names").predictions
        assert [len(labels.labels) for labels in words] == [2, 1]
        with pytest.raises(ValueError, match=r"step=\.\.\. is not used: each text"):
            client.classify(frame, model="commands", step="ticket")
        with pytest.raises(
            ValueError, match="text column 'text' is missing; found kind"
        ):
            client.classify(frame[["kind"]], model="commands")
