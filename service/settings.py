"""The settings of the service, read once from the environment or from options."""

import difflib
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service import values
from service.values import ApiKeys, BundleFolders, Origins, StateKey

PREFIX = "UNROLLED_"
# Used by the client commands, not by the service.
API_KEY, CLIENT_URL = f"{PREFIX}API_KEY", f"{PREFIX}URL"
# Secrets, which only the serving process may have, and settings that depend on them.
SECRETS = ("state_key", "api_keys", "rate_per_key", "tls_certificate", "tls_key")


class SettingsError(ValueError):
    """A setting is unknown or out of bounds; the message names it."""


class Limits(NamedTuple):
    """Limits of a request's body."""

    max_sequences: int
    max_steps: int
    max_cells: int


class Settings(BaseSettings):
    """All settings; `port` is the variable `UNROLLED_PORT` and the option `--port`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(
        8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one."
    )
    bundles: BundleFolders = Field(
        "",
        description="Folders of bundles, separated by commas, or a single bundle. "
        "Default: the shipped bundles, and `trained` in the current folder.",
    )
    bundle_keys: str = Field(
        "",
        description="PEM file of public keys. If set, every bundle must be signed by one "
        "of them.",
    )
    keep_versions: int = Field(
        1,
        ge=0,
        description="Number of versions to serve of each bundle, the newest up to the default "
        "one, besides labelled ones; 0 serves all of them.",
    )
    reload_seconds: float = Field(
        5,
        ge=0,
        allow_inf_nan=False,
        description="Seconds between checks for new versions, labels and certificates; 0 "
        "checks only at startup.",
    )
    skip_broken: bool = Field(
        False, description="Start and serve the other bundles if one is broken."
    )
    default_classify: str = Field(
        "",
        description="Model (NAME or NAME@VERSION) for /classify when the request names "
        "none. Default: the first.",
    )
    default_label: str = Field(
        "",
        description="Model (NAME or NAME@VERSION) for /label when the request names none. "
        "Default: the first.",
    )
    engine: Literal["auto", "onnx", "tensorflow"] = Field(
        "auto",
        description="Inference engine; auto picks the fastest that reproduces the golden "
        "answers.",
    )
    precision: Literal["auto", "float32", "int8"] = Field(
        "auto",
        description="Precision of the weights; int8 is used where a bundle has int8 weights, "
        "auto only if they are faster.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="Number of worker processes; 0 starts one per available core.",
    )
    max_connections: int = Field(
        4_000,
        ge=1,
        description="Connection limit. Beyond it, the longest-idle connection is closed.",
    )
    header_seconds: float = Field(
        10,
        gt=0,
        allow_inf_nan=False,
        description="Timeout for a request's head, and for a TLS handshake.",
    )
    body_seconds: float = Field(
        30, gt=0, allow_inf_nan=False, description="Timeout for a request's body."
    )
    keep_alive_seconds: int = Field(
        75,
        ge=0,
        description="Keep-alive timeout: how long a connection may be idle between "
        "requests.",
    )
    max_header_bytes: int = Field(
        16_384, ge=256, description="Maximum size of a request's head in bytes."
    )
    max_headers: int = Field(
        100, ge=1, description="Maximum number of header fields in a request."
    )
    max_body_bytes: int = Field(
        8 * 2**20, ge=1, description="Maximum size of a request's body in bytes."
    )
    buffer_bytes: int = Field(
        128 * 2**20,
        ge=1,
        description="Memory budget in bytes for everything buffered for clients: bodies, "
        "frames, unread answers. Beyond it, requests get 503.",
    )
    max_sequences: int = Field(
        256, ge=1, description="Maximum number of sequences in a request."
    )
    max_steps: int = Field(
        10_000, ge=1, description="Maximum number of time steps in a sequence."
    )
    max_cells: int = Field(
        2_000_000, ge=1, description="Maximum number of values in a request."
    )
    request_seconds: float = Field(
        10,
        gt=0,
        allow_inf_nan=False,
        description="Request timeout (504). New requests get 503 while the estimated wait "
        "exceeds half of it.",
    )
    stall_seconds: float = Field(
        30,
        gt=0,
        allow_inf_nan=False,
        description="Restart a worker that has work but has not responded for this long.",
    )
    load_seconds: float = Field(
        120,
        gt=0,
        allow_inf_nan=False,
        description="Timeout for loading a bundle; a bundle that takes longer counts as "
        "broken.",
    )
    load_bytes: int = Field(
        512 * 2**20,
        ge=2**20,
        description="Memory that loading or running a bundle may take in a process, "
        "besides four times its weights; beyond it the bundle counts as "
        "broken.",
    )
    queue_steps: int = Field(
        200_000,
        ge=1,
        description="Maximum number of queued time steps per model; beyond it requests "
        "get 503.",
    )
    batch_rows: int = Field(
        64, ge=1, description="Maximum batch size: sequences in one engine call."
    )
    batch_steps: int = Field(
        1_024,
        ge=1,
        description="Maximum time steps in one batch, with padding, for bidirectional "
        "networks.",
    )
    drain_seconds: float = Field(
        5,
        ge=0,
        allow_inf_nan=False,
        description="On SIGTERM, keep serving for this long while /readyz returns 503.",
    )
    grace_seconds: int = Field(
        20,
        ge=0,
        description="After draining, time for the remaining requests to finish.",
    )
    state_key: StateKey = Field(
        SecretStr(""),
        description="Key that signs state tokens; use the same one in all replicas. Older "
        "keys may follow after commas. Default: a random key.",
    )
    max_streams: int = Field(
        2_000,
        ge=0,
        description="Maximum number of open streams. With several API keys, one key may "
        "use as many as are left free.",
    )
    stream_idle_seconds: float = Field(
        300,
        gt=0,
        allow_inf_nan=False,
        description="Close a stream that has sent nothing for this long.",
    )
    stream_seconds: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="Ask clients to reconnect a stream after this long; 0: never.",
    )
    stream_message_bytes: int = Field(
        2**20, ge=1, description="Maximum size of a stream message in bytes."
    )
    admin: bool = Field(
        False,
        description="Enable listing, loading and unloading of models at /v2/repository.",
    )
    server_name: str = Field(
        "unrolled",
        pattern=r"^[A-Za-z0-9._ -]{1,64}$",
        description="Server name reported at /v2; some Triton clients expect triton.",
    )
    api_keys: ApiKeys = Field(
        SecretStr(""),
        description="API keys that may be used, as NAME:SHA256, separated by commas; see "
        "`unrolled key`. Default: no key is needed.",
    )
    rate_per_key: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="Maximum requests and stream messages per second for each API key; 0: "
        "unlimited.",
    )
    cors_origins: Origins = Field(
        "",
        description="Origins that may call the API from a browser, separated by commas: "
        "https://example.org.",
    )
    tls_certificate: str = Field(
        "",
        description="PEM file of the certificate chain. Enables HTTPS. Reloaded when it "
        "changes.",
    )
    tls_key: str = Field("", description="PEM file of the certificate's private key.")
    metrics: bool = Field(True, description="Serve Prometheus metrics at /metrics.")
    docs: bool = Field(True, description="Serve /docs and /openapi.json.")
    playground: bool = Field(True, description="Serve the playground at / to browsers.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Log format; auto is text on a terminal and JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of log lines."
    )

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders of bundles; of equal versions that of the last folder counts."""
        from model.bundle import folders  # not needed by a command like `key`

        return tuple(map(Path, values.split_list(self.bundles))) or folders.DEFAULTS

    @property
    def keys(self) -> Path | None:
        """The file of the public keys that may sign bundles."""
        return Path(self.bundle_keys) if self.bundle_keys else None

    def without_secrets(self) -> Self:
        """The settings for a process that must not have the secrets."""
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].default for name in SECRETS})

    @property
    def limits(self) -> Limits:
        """The limits of a request, for a process that must not have the other settings."""
        return Limits(self.max_sequences, self.max_steps, self.max_cells)

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.queue_steps < self.max_steps:
            raise ValueError(f"{PREFIX}QUEUE_STEPS must be at least {PREFIX}MAX_STEPS")
        if self.buffer_bytes < self.max_body_bytes:
            raise ValueError(
                f"{PREFIX}BUFFER_BYTES must be at least {PREFIX}MAX_BODY_BYTES"
            )
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError(f"{PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_KEY go together")
        if self.rate_per_key and not values.key_digests(self.api_keys):
            raise ValueError(f"{PREFIX}RATE_PER_KEY needs {PREFIX}API_KEYS")
        if self.tls_certificate:
            values.tls_context(self.tls_certificate, self.tls_key)
        return self


def load(**options: Any) -> Settings:
    """Read the settings from the environment; options override them.

    Raises:
        SettingsError: names each wrong variable.
    """
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    known |= {API_KEY, CLIENT_URL}
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            similar = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise SettingsError(f"{name}: no such setting{hint}")
    try:
        return Settings(**options)
    except ValidationError as error:
        reasons = (
            f"{PREFIX}{'.'.join(map(str, item['loc'])).upper()}: {message}"
            if item["loc"]
            else message
            for item in error.errors()
            for message in [item["msg"].removeprefix("Value error, ")]
        )
        raise SettingsError("; ".join(reasons)) from None
