"""Settings: from the environment, from flags, refused by name, and documented."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from service import __main__ as main
from service import settings
from service.settings import PREFIX, SECRETS, SHIPPED, Settings, SettingsError
from tests.support.servers import ROOT

DIGEST = 64 * "a"
# Of each setting a value that isn't its default: as text, and as it is then.
VALUES = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "bundles": ("/some/where", Path("/some/where")),
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
# These make sense with others only: see `TestTogether`.
TOGETHER = {"rate_per_key", "tls_certificate", "tls_key"}
SWITCHES = (
    "skip_broken",
    "admin",
    "docs",
    "metrics",
    "playground",
)  # flags without a value


def variable(name):
    return f"{PREFIX}{name.upper()}"


def run(monkeypatch, *arguments):
    """The flags that `serve` hands on, and the settings that they make."""
    seen = []

    def load(**flags):
        seen.append((flags, settings.load(**flags)))
        raise SettingsError("far enough")

    monkeypatch.setattr(main, "load", load)
    result = CliRunner().invoke(main.app, ["serve", *arguments])
    assert result.exit_code == 2, result.output
    assert "far enough" in result.output
    return seen[0]


def test_table_is_whole():
    """The tests here know every setting."""
    assert set(VALUES) | TOGETHER == set(Settings.model_fields)
    for name, (_, expected) in VALUES.items():
        assert Settings.model_fields[name].default != expected


def test_defaults():
    """Without anything every setting has its default, and the shipped bundles lie
    beside the packages."""
    loaded = settings.load()
    for name, field in Settings.model_fields.items():
        assert getattr(loaded, name) == field.default
    assert ROOT / "bundles" == SHIPPED


@pytest.mark.parametrize("name", VALUES)
class TestEach:
    def test_environment(self, monkeypatch, name):
        """Each can be set by its variable, and changes no other."""
        text, expected = VALUES[name]
        monkeypatch.setenv(variable(name), text)
        assert settings.load() == Settings().model_copy(update={name: expected})

    def test_flag(self, monkeypatch, name):
        """Each can be set by its flag, and changes no other."""
        text, expected = VALUES[name]
        flag = f"--{name.replace('_', '-')}"
        if name in SWITCHES:
            arguments = [flag if expected else f"--no-{flag[2:]}"]
        else:
            arguments = [flag, text]
        flags, loaded = run(monkeypatch, *arguments)
        assert flags == {name: expected}
        assert loaded == Settings().model_copy(update={name: expected})

    def test_flag_goes_first(self, monkeypatch, name):
        """A flag counts more than the variable."""
        text, expected = VALUES[name]
        default = Settings.model_fields[name].default
        monkeypatch.setenv(variable(name), text)
        assert getattr(settings.load(**{name: default}), name) == default
        assert getattr(settings.load(), name) == expected

    def test_told_to_a_worker(self, monkeypatch, name):
        """Each reaches a worker as it is, in JSON, but for the secrets."""
        text, _ = VALUES[name]
        monkeypatch.setenv(variable(name), text)
        loaded = settings.load()
        told = loaded.model_dump_json(exclude=set(SECRETS))
        monkeypatch.delenv(variable(name))
        read = Settings.model_validate_json(told)
        assert read == loaded.without_secrets()
        assert read == loaded or name in SECRETS

    def test_help(self, name):
        """Each stands in `serve --help` with its meaning and its default."""
        result = CliRunner().invoke(
            main.app,
            ["serve", "--help"],
            env={"COLUMNS": "400", "TERMINAL_WIDTH": "400", "NO_COLOR": "1"},
        )
        text = re.sub(r"\s+", " ", result.output)
        field = Settings.model_fields[name]
        assert f"--{name.replace('_', '-')}" in text
        assert f"{field.description} [default: {main.shown(field.default)}]" in text

    def test_described(self, name):
        """Each says what it means, in a sentence."""
        description = Settings.model_fields[name].description
        assert re.fullmatch(r"[A-Z/].*\.", description)
        assert "|" not in description


class TestRefused:
    @pytest.mark.parametrize(("name", "text"), WRONG)
    def test_out_of_bounds(self, monkeypatch, name, text):
        """A value out of bounds is refused by the variable's name."""
        monkeypatch.setenv(variable(name), text)
        with pytest.raises(SettingsError) as caught:
            settings.load()
        assert str(caught.value).startswith(f"{variable(name)}: ")
        assert "pydantic" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "text"), [one for one in WRONG if one[0] not in SWITCHES]
    )
    def test_flag_out_of_bounds(self, name, text):
        """So is a flag's, with exit code 2."""
        flag = f"--{name.replace('_', '-')}"
        result = CliRunner().invoke(main.app, ["serve", f"{flag}={text}"])
        assert result.exit_code == 2, result.output
        assert flag in result.output or variable(name) in result.output
        assert "Traceback" not in result.output

    def test_several(self, monkeypatch):
        """All that are wrong are named at once."""
        monkeypatch.setenv("UNROLLED_PORT", "-1")
        monkeypatch.setenv("UNROLLED_WORKERS", "x")
        with pytest.raises(SettingsError, match=r"UNROLLED_PORT: .*; UNROLLED_WORKERS"):
            settings.load()

    @pytest.mark.parametrize("text", ["inf", "1e400"])
    def test_for_ever(self, monkeypatch, text):
        """A time without an end, which JSON can't tell a worker, is refused."""
        monkeypatch.setenv("UNROLLED_STREAM_IDLE_SECONDS", text)
        with pytest.raises(SettingsError, match="UNROLLED_STREAM_IDLE_SECONDS"):
            settings.load()

    def test_no_text(self, monkeypatch):
        """A key whose bytes are no text is refused, and not repeated."""
        monkeypatch.setenv("UNROLLED_STATE_KEY", "\udcff0123456789abcdef")
        with pytest.raises(SettingsError, match="UNROLLED_STATE_KEY") as caught:
            settings.load()
        assert "0123" not in str(caught.value)

    def test_together(self, monkeypatch):
        """Two that don't fit together are both named: one sequence must fit in the
        queue."""
        monkeypatch.setenv("UNROLLED_QUEUE_STEPS", "100")
        with pytest.raises(SettingsError) as caught:
            settings.load()
        assert "UNROLLED_QUEUE_STEPS" in str(caught.value)
        assert "UNROLLED_MAX_STEPS" in str(caught.value)
        assert "UNROLLED_:" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("UNROLLED_PROT", "UNROLLED_PORT"),
            ("UNROLLED_MAX_STEP", "UNROLLED_MAX_STEPS"),
            ("UNROLLED_BUNDLE", "UNROLLED_BUNDLES"),
            ("UNROLLED_SKIPBROKEN", "UNROLLED_SKIP_BROKEN"),
            ("UNROLLED_LOGLEVEL", "UNROLLED_LOG_LEVEL"),
        ],
    )
    def test_unknown(self, monkeypatch, name, hint):
        """An unknown variable of ours is refused with the one that was meant."""
        monkeypatch.setenv(name, "1")
        message = f"{name}: no such setting; did you mean {hint}?"
        with pytest.raises(SettingsError, match=re.escape(message)):
            settings.load()

    @pytest.mark.parametrize("name", ["UNROLLED_", "UNROLLED_QQQQQQQQQQQQQQQQ"])
    def test_unknown_without_hint(self, monkeypatch, name):
        """One that is like no other is refused all the same."""
        monkeypatch.setenv(name, "1")
        with pytest.raises(SettingsError, match=f"{name}: no such setting"):
            settings.load()

    def test_lower_case(self, monkeypatch):
        """A variable counts in lower case too, and is refused in it."""
        monkeypatch.setenv("unrolled_port", "81")
        assert settings.load().port == 81
        monkeypatch.setenv("unrolled_prot", "81")
        with pytest.raises(SettingsError, match="unrolled_prot: no such setting"):
            settings.load()

    def test_others_are_let_be(self, monkeypatch):
        """Variables of other programs are none of ours."""
        for name in ("UNROLLEDPORT", "PORT", "XUNROLLED_PORT", "HOST"):
            monkeypatch.setenv(name, "nonsense")
        assert settings.load() == Settings()

    def test_unknown_flag(self):
        """An unknown flag, or member, is refused."""
        result = CliRunner().invoke(main.app, ["serve", "--prot", "1"])
        assert result.exit_code == 2
        with pytest.raises(SettingsError, match="PROT"):
            settings.load(prot=1)

    def test_frozen(self):
        """Once read, settings don't change."""
        loaded = settings.load()
        with pytest.raises(ValueError, match="frozen"):
            loaded.port = 1


class TestShown:
    def test_settings_command(self, monkeypatch):
        """`settings` prints each with its value here, its variable and its meaning."""
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
        """With a setting that is wrong it says which, with exit code 2."""
        monkeypatch.setenv("UNROLLED_PORT", "x")
        result = CliRunner().invoke(main.app, ["settings"])
        assert result.exit_code == 2
        assert "UNROLLED_PORT" in result.output
