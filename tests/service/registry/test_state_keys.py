"""The keys that sign state tokens: from the setting, else random; and never shown."""

import logging

import pytest
from typer.testing import CliRunner

from service import __main__ as main
from service.registry import state_tokens
from service.registry.state_tokens import SigningKeys, TokenSigner
from service.settings import Settings, SettingsError, load
from tests.support.bundles import make_metadata


class TestKeys:
    def test_random(self, caplog):
        """Without a setting the key is random each time, and the log says how to set it."""
        with caplog.at_level(logging.INFO):
            first, second = (state_tokens.load_keys(Settings()) for _ in range(2))
        assert len(first.signing) >= 32
        assert first.signing != second.signing
        records = [r for r in caplog.records if r.name.startswith("service")]
        assert [record.levelname for record in records] == ["INFO"] * 2
        assert "UNROLLED_STATE_KEY is not set" in records[0].getMessage()

    def test_set(self, caplog):
        """With a setting the log says nothing, and the key is the setting's."""
        with caplog.at_level(logging.DEBUG):
            keys = state_tokens.load_keys(Settings(state_key="a key of the tests"))
        assert keys.signing == b"a key of the tests"
        assert caplog.records == []

    def test_ids(self):
        """Every key has another id."""
        ids = {
            SigningKeys([b"a key of the tests %d" % number]).id for number in range(200)
        }
        assert len(ids) == 200


class TestSecret:
    SECRET = "s3cr3t-key-s3cr3t-key"

    def test_settings(self):
        """The key is in no text of the settings, nor in what a worker gets."""
        loaded = Settings(state_key=f"{self.SECRET},{self.SECRET}-old")
        for text in (repr(loaded), str(loaded), f"{loaded}", loaded.model_dump_json()):
            assert "s3cr3t" not in text
        assert "s3cr3t" not in str(loaded.model_dump())

    def test_command(self, monkeypatch):
        """The command `settings` hides the key, but shows that there is one."""
        monkeypatch.setenv("UNROLLED_STATE_KEY", self.SECRET)
        result = CliRunner().invoke(main.app, ["settings"])
        assert result.exit_code == 0
        assert "UNROLLED_STATE_KEY=***" in result.output
        assert "s3cr3t" not in result.output

    @pytest.mark.parametrize(
        "text", ["s3cr3t", f"{SECRET},s3cr3t", f"{SECRET},", f"{SECRET},,{SECRET}"]
    )
    def test_refused(self, monkeypatch, text):
        """The error of a key that is too short does not repeat it; an empty one after a
        comma counts."""
        monkeypatch.setenv("UNROLLED_STATE_KEY", text)
        with pytest.raises(SettingsError, match=r"UNROLLED_STATE_KEY: .*16") as caught:
            load()
        assert "s3cr3t" not in str(caught.value)
        monkeypatch.delenv("UNROLLED_STATE_KEY")
        result = CliRunner().invoke(main.app, ["serve", "--state-key", text])
        assert result.exit_code == 2
        assert "UNROLLED_STATE_KEY" in result.output
        assert "s3cr3t" not in result.output

    def test_objects(self):
        """The text of the objects with the key does not have it."""
        keys = SigningKeys([self.SECRET.encode()])
        signer = TokenSigner(keys, make_metadata(), "0" * 64, "float32")
        for text in (repr(signer), repr(keys)):
            assert "s3cr3t" not in text
