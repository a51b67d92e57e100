"""Texts on the command line: as options, in a file, and where only tables are taken."""

import json

import pytest

from service.settings import Settings
from tests.service.cli.commands import assert_fails, invoke
from tests.support.servers import running


@pytest.fixture(scope="module")
def url(text_bundles):
    with running(Settings(port=0, bundles=text_bundles, workers=1)) as service:
        yield service.url


def lines(result):
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_options_and_files(url, tmp_path):
    """A text is an option, or a line of a file; each has a line of the output."""
    texts = ["turn on the dog", "naïve"]
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    options = [word for text in texts for word in ("--text", text)]
    first = lines(invoke("classify", *options, "--url", url))
    assert first == lines(invoke("classify", str(file), "--url", url))
    assert len(first) == 2
    assert first == lines(invoke("classify", "-", "--url", url, input="\n".join(texts)))
    request = json.dumps({"texts": texts, "model": "commands"})
    assert first == lines(invoke("classify", "-", "--url", url, input=request))
    (labels,) = lines(invoke("label", "--text", "Anna sees", "--url", url))
    assert [token["text"] for token in labels["tokens"]] == ["Anna", "sees"]


def test_one_of_both(url, tmp_path):
    for arguments in ((), (str(tmp_path / "a.txt"), "--text", "a")):
        result = invoke("classify", *arguments, "--url", url)
        assert result.exit_code == 2
        assert "give FILE, or --text" in result.output


def test_tables(url, text_bundles):
    """A table does not go to a model that reads text; the error says what to do."""
    file = str(text_bundles / "commands.csv")
    for options in (("--model", "commands", "--url", url),):
        assert_fails(invoke("predict", file, *options), "commands reads text")
    bundle = str(text_bundles / "commands" / "1")
    assert_fails(invoke("predict", file, "--bundle", bundle), "commands reads text")
