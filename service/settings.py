"""Every setting of the service, read once, from the environment or from flags."""

import difflib
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from . import values
from .values import ApiKeys, Origins, StateKey

PREFIX = "UNROLLED_"
API_KEY = f"{PREFIX}API_KEY"  # of a client: no setting of the service
# For the serving process alone, and what makes sense only beside that.
SECRETS = ("state_key", "api_keys", "rate_per_key", "tls_certificate", "tls_key")
SHIPPED = Path(__file__).parent.parent / "bundles"


class SettingsError(ValueError):
    """A setting that is unknown or out of bounds; the text names it."""


class Limits(NamedTuple):
    """What a request may hold."""

    max_sequences: int
    max_steps: int
    max_cells: int


class Settings(BaseSettings):
    """The service's settings; `UNROLLED_PORT=80` or `--port 80`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port; 0 takes a free one.")
    bundles: Path = Field(SHIPPED, description="Folder of bundles, or one bundle.")
    bundle_keys: str = Field(
        "",
        description="PEM file of public keys; each bundle must be signed by one of them."
        " None: signatures are not asked for.",
    )
    keep_versions: int = Field(
        1,
        ge=0,
        description="Newest versions of a bundle that are served, besides those with a"
        " label; 0: all.",
    )
    reload_seconds: float = Field(
        5,
        ge=0,
        allow_inf_nan=False,
        description="Between looks for new versions and labels; 0: only at the start.",
    )
    skip_broken: bool = Field(
        False, description="Serve the others when a bundle is broken."
    )
    default_classify: str = Field(
        "",
        description="Model (or NAME@VERSION) of /classify when none is named; else the first.",
    )
    default_label: str = Field(
        "",
        description="Model (or NAME@VERSION) of /label when none is named; else the first.",
    )
    engine: Literal["auto", "onnx", "tensorflow"] = Field(
        "auto", description="What computes; auto: the fastest that is right."
    )
    precision: Literal["float32", "int8"] = Field(
        "float32",
        description="Of the weights; int8 where a bundle was exported with --int8.",
    )
    workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="Processes that compute; 0: one a core it may use.",
    )
    max_connections: int = Field(
        4_000,
        ge=1,
        description="Connections open at a time; over it the one idle for longest goes.",
    )
    header_seconds: float = Field(
        10,
        gt=0,
        allow_inf_nan=False,
        description="For a request's head to come, from its first byte.",
    )
    body_seconds: float = Field(
        30, gt=0, allow_inf_nan=False, description="For a request's body to come."
    )
    keep_alive_seconds: int = Field(
        75, ge=0, description="For a connection's next request to come."
    )
    max_header_bytes: int = Field(
        16_384, ge=256, description="Longest head of a request in bytes."
    )
    max_headers: int = Field(100, ge=1, description="Fields in a request's head.")
    max_body_bytes: int = Field(
        8 * 2**20, ge=1, description="Longest request body in bytes."
    )
    buffer_bytes: int = Field(
        128 * 2**20,
        ge=1,
        description="Bytes held for all clients together: bodies, frames, answers that"
        " are not read yet. Over it the largest and oldest are refused (503).",
    )
    max_sequences: int = Field(256, ge=1, description="Sequences in a request.")
    max_steps: int = Field(10_000, ge=1, description="Steps of a sequence.")
    max_cells: int = Field(2_000_000, ge=1, description="Numbers in a request.")
    request_seconds: float = Field(
        10,
        gt=0,
        allow_inf_nan=False,
        description="In which a request is answered, or refused: 504. With half as much"
        " work waiting, new ones are: 503.",
    )
    stall_seconds: float = Field(
        30,
        gt=0,
        allow_inf_nan=False,
        description="Until a worker that has work and says nothing is replaced.",
    )
    load_seconds: float = Field(
        120,
        gt=0,
        allow_inf_nan=False,
        description="For a worker to load a bundle; one that takes longer is broken.",
    )
    load_bytes: int = Field(
        512 * 2**20,
        ge=2**20,
        description="Memory that a bundle may take in a process, besides four times its"
        " weights; one that takes more is broken.",
    )
    queue_steps: int = Field(
        200_000, ge=1, description="Steps that may wait per model before 503."
    )
    batch_rows: int = Field(64, ge=1, description="Sequences in one engine call.")
    batch_steps: int = Field(
        1_024,
        ge=1,
        description="Steps, padding included, of sequences that must be stepped whole.",
    )
    drain_seconds: float = Field(
        5,
        ge=0,
        allow_inf_nan=False,
        description="Told to stop (SIGTERM), serve on for so long, while /readyz says 503.",
    )
    grace_seconds: int = Field(
        20, ge=0, description="Then, for requests under way to be answered."
    )
    state_key: StateKey = Field(
        SecretStr(""),
        description="Signs state tokens; the same in all replicas. After a comma: older"
        " keys, still accepted. None: a random one.",
    )
    max_streams: int = Field(
        2_000,
        ge=0,
        description="Streams open at a time. Of several API keys, one may have as many as"
        " are left free.",
    )
    stream_idle_seconds: float = Field(
        300,
        gt=0,
        allow_inf_nan=False,
        description="Until a stream that sends nothing is closed.",
    )
    stream_seconds: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="Until a stream must go on over another connection; 0: never.",
    )
    stream_message_bytes: int = Field(
        2**20, ge=1, description="Longest message of a stream in bytes."
    )
    admin: bool = Field(
        False, description="Let callers list, load and unload models: /v2/repository."
    )
    server_name: str = Field(
        "unrolled",
        pattern=r"^[A-Za-z0-9._ -]{1,64}$",
        description="Name at /v2; some clients of Triton look for triton.",
    )
    api_keys: ApiKeys = Field(
        SecretStr(""),
        description="Keys that requests must have: NAME:SHA256, after a comma more; see"
        " `python -m service key`. None: all may ask.",
    )
    rate_per_key: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="Requests, and messages of streams, a second with one key; 0: any"
        " number.",
    )
    cors_origins: Origins = Field(
        "",
        description="Web pages that may ask: https://example.org, after a comma more.",
    )
    tls_certificate: str = Field(
        "",
        description="PEM file of the chain; with it HTTPS is spoken. Read again when it"
        " changes.",
    )
    tls_key: str = Field("", description="PEM file of the certificate's key.")
    metrics: bool = Field(True, description="Serve /metrics.")
    docs: bool = Field(True, description="Serve /docs and /openapi.json.")
    playground: bool = Field(True, description="Serve the page at / to browsers.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="Log lines; auto: text on a terminal, else json."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log lines to write."
    )

    @property
    def keys(self) -> Path | None:
        """Of those who may sign bundles."""
        return Path(self.bundle_keys) if self.bundle_keys else None

    def without_secrets(self) -> Self:
        """For a process that needs none: as they are but for `SECRETS`."""
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].default for name in SECRETS})

    @property
    def limits(self) -> Limits:
        """For a process that must not know the rest."""
        return Limits(self.max_sequences, self.max_steps, self.max_cells)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.queue_steps < self.max_steps:
            raise ValueError(f"{PREFIX}QUEUE_STEPS must be at least {PREFIX}MAX_STEPS")
        if self.buffer_bytes < self.max_body_bytes:
            raise ValueError(
                f"{PREFIX}BUFFER_BYTES must be at least {PREFIX}MAX_BODY_BYTES"
            )
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError(f"{PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_KEY go together")
        if self.rate_per_key and not values.digests(self.api_keys):
            raise ValueError(f"{PREFIX}RATE_PER_KEY needs {PREFIX}API_KEYS")
        if self.tls_certificate:
            values.tls_context(self.tls_certificate, self.tls_key)
        return self


def load(**flags: Any) -> Settings:
    """Settings of the environment, overridden by `flags`.

    Raises:
        SettingsError: names each variable at fault.
    """
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    known |= {API_KEY}
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"{name}: no such setting{hint}")
    try:
        return Settings(**flags)
    except ValidationError as error:
        reasons = (
            f"{PREFIX}{'.'.join(map(str, item['loc'])).upper()}: {message}"
            if item["loc"]
            else message
            for item in error.errors()
            for message in [item["msg"].removeprefix("Value error, ")]
        )
        raise SettingsError("; ".join(reasons)) from None
