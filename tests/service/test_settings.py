"""Settings: read from variables and options, refused by name, and documented."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from service import __main__ as main
from service import settings
from service.settings import PREFIX, SECRETS, Settings, SettingsError
from tests.support.servers import ROOT

DIGEST = 64 * "a"
# For each setting a value other than its default: as text, and parsed.
VALUES = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "bundles": ("/some/where", "/some/where"),
    "bundle_keys": ("/some/keys.pem", "/some/keys.pem"),
    "skip_broken": ("true", True),
    "default_classify": ("digits", "digits"),
    "default_label": ("letters", "letters"),
    "engine": ("tensorflow", "tensorflow"),
    "precision": ("int8", "int8"),
    "workers": ("3", 3),
    "request_seconds": ("1.5", 1.5),
    "stall_seconds": ("1.5", 1.5),
    "load_seconds": ("1.5", 1.5),
    "load_bytes": ("2000000", 2_000_000),
    "buffer_bytes": ("10000000", 10_000_000),
    "api_keys": (f"me:{DIGEST}", SecretStr(f"me:{DIGEST}")),
    "cors_origins": ("https://example.org", "https://example.org"),
    "metrics": ("false", False),
    "max_connections": ("1", 1),
    "header_seconds": ("1.5", 1.5),
    "body_seconds": ("1.5", 1.5),
    "keep_alive_seconds": ("1", 1),
    "max_header_bytes": ("256", 256),
    "max_headers": ("1", 1),
    "drain_seconds": ("0", 0),
    "max_body_bytes": ("1", 1),
    "max_sequences": ("1", 1),
    "max_steps": ("1", 1),
    "max_cells": ("1", 1),
    "queue_steps": ("10000", 10_000),
    "batch_rows": ("1", 1),
    "batch_steps": ("1", 1),
    "grace_seconds": ("0", 0),
    "state_key": ("0123456789abcdef", SecretStr("0123456789abcdef")),
    "max_streams": ("0", 0),
    "stream_idle_seconds": ("0.5", 0.5),
    "stream_seconds": ("0.5", 0.5),
    "stream_message_bytes": ("1", 1),
    "keep_versions": ("0", 0),
    "reload_seconds": ("0", 0.0),
    "admin": ("true", True),
    "server_name": ("triton", "triton"),
    "docs": ("false", False),
    "playground": ("false", False),
    "log_format": ("text", "text"),
    "log_level": ("debug", "debug"),
}
WRONG = [
    *(("port", text) for text in ("-1", "65536", "http", "1.5", "")),
    *(("skip_broken", text) for text in ("maybe", "2")),
    *(("engine", text) for text in ("torch", "ONNX", "")),
    *(("precision", text) for text in ("int4", "float16", "INT8", "")),
    *(("workers", text) for text in ("-1", "1025", "all")),
    *(
        (name, text)
        for name in (
            "max_body_bytes",
            "max_sequences",
            "max_steps",
            "max_cells",
            "queue_steps",
            "batch_rows",
            "batch_steps",
            "stream_message_bytes",
        )
        for text in ("0", "-1", "many", "1e3")
    ),
    *(("grace_seconds", text) for text in ("-1", "inf", "soon")),
    *(
        ("state_key", text)
        for text in (" ", "0123456789abcde", ",", "0123456789abcdef,", " " * 20)
    ),
    ("state_key", "0123456789abcdef,0123456789abcde"),
    *(("api_keys", text) for text in ("me", DIGEST[1:], f"a b:{DIGEST}", f"{DIGEST},")),
    ("api_keys", f"me:{DIGEST},me:{DIGEST}"),
    *(("cors_origins", text) for text in ("example.org", "https://a/b", "null")),
    *(("max_streams", text) for text in ("-1", "many", "1.5", "")),
    *(("stream_idle_seconds", text) for text in ("0", "-1", "nan", "soon", "")),
    *(("stream_seconds", text) for text in ("-1", "inf", "nan", "long")),
    *(("load_bytes", text) for text in ("0", "-1", "much")),
    *(("keep_versions", text) for text in ("-1", "all", "1.5")),
    *(("reload_seconds", text) for text in ("-1", "inf", "nan", "often")),
    ("admin", "perhaps"),
    *(("server_name", text) for text in ("", "a" * 65, "a\nb", 'a"b')),
    ("docs", "perhaps"),
    *(("log_format", text) for text in ("xml", "JSON", "")),
    *(("log_level", text) for text in ("loud", "INFO", "10")),
]
# These need others: see `test_combinations`.
TOGETHER = {"rate_per_key", "tls_certificate", "tls_key"}
SWITCHES = {"skip_broken", "admin", "docs", "metrics", "playground"}  # without a value


def variable(name):
    return f"{PREFIX}{name.upper()}"


def option(name):
    return f"--{name.replace('_', '-')}"


def serve(*arguments, **options):
    return CliRunner().invoke(main.app, ["serve", *arguments], **options)


def options_of(monkeypatch, *arguments):
    """The options that `serve` parses, and the settings loaded from them."""
    calls = []

    def load(**options):
        calls.append((options, settings.load(**options)))
        raise SettingsError("far enough")

    monkeypatch.setattr(main, "load", load)
    result = serve(*arguments)
    assert result.exit_code == 2, result.output
    assert "far enough" in result.output
    return calls[0]


def test_table_is_complete():
    """The tests here know every setting."""
    assert set(VALUES) | TOGETHER == set(Settings.model_fields)
    for name, (_, expected) in VALUES.items():
        assert Settings.model_fields[name].default != expected


def test_defaults():
    """Without variables every setting has its default, and the shipped bundles are at
    the root of the checkout."""
    loaded = settings.load()
    for name, field in Settings.model_fields.items():
        assert getattr(loaded, name) == field.default
    assert loaded.folders == (ROOT / "bundles", Path("trained"))


def test_variables(monkeypatch):
    """Each setting has a variable, which changes no other setting; an option overrides
    it."""
    for name, (text, expected) in VALUES.items():
        default = Settings.model_fields[name].default
        with monkeypatch.context() as patch:
            patch.setenv(variable(name), text)
            assert settings.load() == Settings().model_copy(update={name: expected})
            assert getattr(settings.load(**{name: default}), name) == default


def test_options(monkeypatch):
    """Each setting has an option, which changes no other setting."""
    for name, (text, expected) in VALUES.items():
        arguments = [option(name), text]
        if name in SWITCHES:
            arguments = [option(name) if expected else f"--no-{option(name)[2:]}"]
        options, loaded = options_of(monkeypatch, *arguments)
        assert options == {name: expected}
        assert loaded == Settings().model_copy(update={name: expected})


def test_sent_to_workers(monkeypatch):
    """Each setting reaches a worker unchanged, in JSON, except for the secrets."""
    for name, (text, _) in VALUES.items():
        with monkeypatch.context() as patch:
            patch.setenv(variable(name), text)
            loaded = settings.load()
        message = loaded.model_dump_json(exclude=set(SECRETS))
        received = Settings.model_validate_json(message)
        assert received == loaded.without_secrets()
        assert received == loaded or name in SECRETS


def test_help():
    """`serve --help` has each setting with its meaning, a sentence, and its default."""
    environment = {"COLUMNS": "400", "TERMINAL_WIDTH": "400", "NO_COLOR": "1"}
    text = re.sub(r"\s+", " ", serve("--help", env=environment).output)
    for name, field in Settings.model_fields.items():
        assert option(name) in text
        assert f"{field.description} [default: {main.shown(field.default)}]" in text
        assert re.fullmatch(r"[A-Z/][^|]*\.", field.description)


class TestRefused:
    def test_variable_out_of_bounds(self, monkeypatch):
        """A value out of bounds is refused with the variable's name."""
        for name, text in WRONG:
            with monkeypatch.context() as patch:
                patch.setenv(variable(name), text)
                with pytest.raises(SettingsError) as caught:
                    settings.load()
            assert str(caught.value).startswith(f"{variable(name)}: ")
            assert "pydantic" not in str(caught.value)

    def test_option_out_of_bounds(self):
        """An option out of bounds is refused with its name, and with exit code 2."""
        for name, text in WRONG:
            if name in SWITCHES:
                continue
            result = serve(f"{option(name)}={text}")
            assert result.exit_code == 2, result.output
            assert option(name) in result.output or variable(name) in result.output
            assert "Traceback" not in result.output

    def test_several(self, monkeypatch):
        """All wrong settings are named at once."""
        monkeypatch.setenv("UNROLLED_PORT", "-1")
        monkeypatch.setenv("UNROLLED_WORKERS", "x")
        with pytest.raises(SettingsError, match=r"UNROLLED_PORT: .*; UNROLLED_WORKERS"):
            settings.load()

    def test_infinite(self, monkeypatch):
        """An infinite time, which JSON can't express, is refused."""
        for text in ("inf", "1e400"):
            monkeypatch.setenv("UNROLLED_STREAM_IDLE_SECONDS", text)
            with pytest.raises(SettingsError, match="UNROLLED_STREAM_IDLE_SECONDS"):
                settings.load()

    def test_not_utf_8(self, monkeypatch):
        """A key that is not UTF-8 is refused, and the message doesn't repeat it."""
        monkeypatch.setenv("UNROLLED_STATE_KEY", "\udcff0123456789abcdef")
        with pytest.raises(SettingsError, match="UNROLLED_STATE_KEY") as caught:
            settings.load()
        assert "0123" not in str(caught.value)

    def test_combinations(self):
        """Settings that don't fit together are named."""
        for options, names in (
            ({"queue_steps": 100}, ("QUEUE_STEPS", "MAX_STEPS")),
            ({"buffer_bytes": 100}, ("BUFFER_BYTES", "MAX_BODY_BYTES")),
            ({"tls_key": "/key.pem"}, ("TLS_CERTIFICATE", "TLS_KEY")),
            ({"rate_per_key": 1}, ("RATE_PER_KEY", "API_KEYS")),
        ):
            with pytest.raises(SettingsError) as caught:
                settings.load(**options)
            for name in names:
                assert f"{PREFIX}{name}" in str(caught.value)
            assert "UNROLLED_:" not in str(caught.value)

    def test_unknown_variable(self, monkeypatch):
        """An unknown variable with our prefix is refused, with the most similar one."""
        for name, hint in (
            ("UNROLLED_PROT", "; did you mean UNROLLED_PORT?"),
            ("UNROLLED_MAX_STEP", "; did you mean UNROLLED_MAX_STEPS?"),
            ("UNROLLED_SKIPBROKEN", "; did you mean UNROLLED_SKIP_BROKEN?"),
            ("unrolled_prot", "; did you mean UNROLLED_PORT?"),
            ("UNROLLED_", "; did you mean UNROLLED_URL?"),
            ("UNROLLED_QQQQQQQQQQQQQQQQ", ""),
        ):
            with monkeypatch.context() as patch:
                patch.setenv(name, "1")
                with pytest.raises(SettingsError) as caught:
                    settings.load()
            assert str(caught.value) == f"{name}: no such setting{hint}"

    def test_lower_case(self, monkeypatch):
        """Variables may be in lower case."""
        monkeypatch.setenv("unrolled_port", "81")
        assert settings.load().port == 81

    def test_other_variables(self, monkeypatch):
        """Variables of other programs are ignored."""
        for name in ("UNROLLEDPORT", "PORT", "XUNROLLED_PORT", "HOST"):
            monkeypatch.setenv(name, "nonsense")
        assert settings.load() == Settings()

    def test_unknown_option(self):
        """An unknown option is refused."""
        assert serve("--prot", "1").exit_code == 2
        with pytest.raises(SettingsError, match="PROT"):
            settings.load(prot=1)

    def test_frozen(self):
        """Settings can't be changed after they were read."""
        loaded = settings.load()
        with pytest.raises(ValueError, match="frozen"):
            loaded.port = 1


class TestShown:
    def test_settings_command(self, monkeypatch):
        """`settings` prints each variable with its current value and its meaning."""
        monkeypatch.setenv("UNROLLED_PORT", "81")
        result = CliRunner().invoke(main.app, ["settings"])
        assert result.exit_code == 0
        lines = result.output.splitlines()
        assert len(lines) == len(Settings.model_fields)
        loaded = settings.load()
        for line, (name, field) in zip(
            lines, Settings.model_fields.items(), strict=True
        ):
            expected = (
                f"{variable(name)}={getattr(loaded, name)}  # {field.description}"
            )
            assert line == expected
        assert "UNROLLED_PORT=81" in result.output

    def test_settings_command_refuses(self, monkeypatch):
        """With a wrong setting it names the variable, with exit code 2."""
        monkeypatch.setenv("UNROLLED_PORT", "x")
        result = CliRunner().invoke(main.app, ["settings"])
        assert result.exit_code == 2
        assert "UNROLLED_PORT" in result.output
