"""Networks that read text or records, without a service."""

import numpy as np
import pandas
import polars
import pytest

import model


class TestText:
    def test_answers(self, text_bundles):
        """Texts and lists of words have the same answers."""
        names = model.load(text_bundles / "names")
        answer = names.label(["Anna sees the dog", "Bob Smith"])
        words = names.label([["Anna", "sees", "the", "dog"], ["Bob", "Smith"]])
        for first, second in zip(answer.predictions, words.predictions, strict=True):
            np.testing.assert_array_equal(first.probabilities, second.probabilities)
        commands = model.load(text_bundles / "commands")
        assert commands.classify("turn on").predictions[0].label in commands.classes

    def test_tables(self, text_bundles, tmp_path):
        """A file and a DataFrame have the answers of their texts, with their ids."""
        commands = model.load(text_bundles / "commands")
        frame = pandas.DataFrame({"text": ["turn on", "naïve"], "ticket": [7, 5]})
        path = tmp_path / "texts.csv"
        frame.to_csv(path, index=False)
        right = commands.classify(["turn on", "naïve"])
        for data in (frame, polars.from_pandas(frame), path):
            answer = commands.classify(data, by="ticket")
            assert answer.ids == ["7", "5"]
            for ours, other in zip(answer.predictions, right.predictions, strict=True):
                np.testing.assert_array_equal(ours.probabilities, other.probabilities)
        assert commands.classify(frame, by="ticket").to_dict()["ticket"].tolist() == [
            7,
            5,
        ]

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"step": "ticket"}, r"step=\.\.\. is not used: each text is a sequence"),
            (
                {"by": "tickets"},
                "sequence column 'tickets' is missing; did you mean 't",
            ),
            ({"ignore": ["other"]}, "column to ignore 'other' is missing"),
            ({"label": "kind"}, "label column 'kind' is missing"),
        ],
    )
    def test_columns(self, text_bundles, options, reason):
        """Names of columns are used, or refused."""
        commands = model.load(text_bundles / "commands")
        frame = pandas.DataFrame({"text": ["turn on"], "ticket": [7]})
        with pytest.raises(ValueError, match=reason):
            commands.classify(frame, **options)
        with pytest.raises(ValueError, match="only a file or a DataFrame has columns"):
            commands.classify(["turn on"], **options)

    @pytest.mark.parametrize("name", ["texts.csv", "turn on the lights.CSV", "notes"])
    def test_names_of_files(self, text_bundles, tmp_path, monkeypatch, name):
        """A string that may be a file is not taken for a text in silence."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "notes").touch()
        commands = model.load(text_bundles / "commands")
        with pytest.raises(ValueError, match=r"pass Path\('.*or the list \['"):
            commands.classify(name)
        assert len(commands.classify([name]).predictions) == 1
        assert len(commands.classify("turn on the notes.").predictions) == 1

    @pytest.mark.parametrize("data", [[], [""], [[1.0]], 5, [["a", ""]]])
    def test_refused(self, text_bundles, data):
        names = model.load(text_bundles / "names")
        with pytest.raises(ValueError, match=r"names takes|no token"):
            names.label(data)


def test_records(text_bundles):
    """Lists of objects, a file and a DataFrame have the same answers."""
    visits = model.load(text_bundles / "visits")
    file = text_bundles / "visits.csv"
    answers = visits.classify(file, by="visit")
    assert answers.accuracy is not None
    frame = visits.classify(pandas.read_csv(file), by="visit")
    rows = pandas.read_csv(file).query("visit == 'v3'").to_dict("records")
    (single,) = visits.classify([rows]).predictions
    for other in (answers.predictions[3], frame.predictions[3]):
        np.testing.assert_allclose(other.probabilities, single.probabilities, atol=1e-6)
    with pytest.raises(ValueError, match="sequence 0, record 0, column 'bytes'"):
        visits.classify([rows[0] | {"bytes": "x"}])
    with pytest.raises(ValueError, match="takes a list of sequences"):
        visits.classify([[[1.0] * 4]])
