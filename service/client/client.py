"""The blocking client of the HTTP API.

>>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
...     client.classify([frames]).predictions[0].label
'7'

A sequence is an array [T, F], or nested lists of that shape. `service.client.errors`
lists the exceptions that both clients raise.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from ssl import SSLContext
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx
from numpy.typing import ArrayLike

from service.client import connection, errors, requests
from service.client.models import ModelDetails, ModelInfo, Models
from service.client.results import Classifications, Labellings
from service.client.retries import Backoff
from service.client.stream import Stream
from service.client.stream_session import StreamSession

T = TypeVar("T")


class Client:
    """A blocking client. Safe to share between threads."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        timeout: float = 30,
        *,
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
        verify: bool | SSLContext = True,
        follow_redirects: bool = False,
        retries: int = 4,
        retry_seconds: float = 30,
        transport: httpx.BaseTransport | None = None,
    ):
        """
        Args:
            url: address of the service.
            timeout: seconds.
            headers: sent with each request, such as `{"X-API-Key": key}`.
            cookies: sent with each request.
            verify: an `ssl.SSLContext` that trusts the service's certificate; False
                trusts any.
            follow_redirects: requests follow redirects, streams don't. Headers and
                cookies are sent to the origin of `url` only.
            retries: how often a request is sent again after 429, 502, 503 or a lost
                connection; 0 turns retries off. The waits double, and are no shorter
                than the service's `retry_after`.
            retry_seconds: no retry begins later than this after the first attempt.
            transport: of httpx, in place of its own, for a proxy or a test.
        """
        self._http = httpx.Client(
            base_url=connection.parse_address(url),
            timeout=timeout,
            headers=headers,
            cookies=dict(cookies or {}),
            verify=verify,
            follow_redirects=follow_redirects,
            transport=transport,
        )
        hooks = self._http.event_hooks
        strip = connection.strip_credentials
        hooks["request"].append(partial(strip, self._http.base_url))
        if not follow_redirects:
            hooks["response"].append(connection.raise_redirect)
        self._timeout, self._headers = timeout, headers
        self._retries, self._retry_seconds = retries, retry_seconds
        self._address = connection.without_credentials(self._http.base_url)

    def classify(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
    ) -> Classifications:
        """Predict one class for each sequence.

        Args:
            sequences: each of shape [T, F], of any lengths.
            model: name, `NAME@VERSION` or `NAME@LABEL`; the service's default if None.
            top_k: return only the likeliest classes, as `top`.
            states: for each sequence the state token to continue from, or None.
            return_state: return a state token with each prediction, as `state`.
        """
        body = requests.encode(sequences, model, top_k, states, return_state)
        return self._request("POST", "/classify", Classifications, body)

    def label(
        self,
        sequences: Sequence[ArrayLike],
        *,
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
    ) -> Labellings:
        """Predict one class for each step of each sequence; see `classify`."""
        body = requests.encode(sequences, model, top_k, states, return_state)
        return self._request("POST", "/label", Labellings, body)

    def stream(
        self,
        model: str,
        *,
        top_k: int | None = None,
        state: str | None = None,
        resume: bool = True,
    ) -> Stream:
        """Open a stream: a sequence whose frames are sent as they come.

        >>> with client.stream("letters-live") as stream:  # doctest: +SKIP
        ...     for frame in frames:
        ...         print(stream.send([frame]).labels)

        Args:
            state: state token to continue from.
            resume: request a state token with each answer, so that the stream resumes
                when the connection breaks or the service restarts.

        Of the client's options a stream uses only `headers` and the timeout.
        """
        session = StreamSession(
            self._http.base_url,
            model,
            top_k,
            state,
            resume,
            self._timeout,
            self._headers,
        )
        return Stream(session)

    def models(self) -> list[ModelInfo]:
        """List the models in service."""
        return self._request("GET", "/models", Models).models

    def model(self, name: str) -> ModelDetails:
        """Describe a model: its features, and how it was trained.

        Args:
            name: NAME, `NAME@VERSION` or `NAME@LABEL`.
        """
        path = f"/models/{quote(name, safe='')}"
        return self._request("GET", path, ModelDetails)

    def ready(self) -> list[str]:
        """List the reasons why the service is not ready; empty if it is ready.

        It is not sent again.
        """
        with self._reporting():
            return connection.parse_reasons(self._http.get("/readyz"))

    def _request(
        self, method: str, path: str, kind: type[T], body: bytes | None = None
    ) -> T:
        headers = None if body is None else connection.JSON
        backoff = Backoff(self._retries, self._retry_seconds)
        while True:
            try:
                with self._reporting():
                    response = self._http.request(
                        method, path, content=body, headers=headers
                    )
                    return connection.parse(response, kind)
            except errors.ClientError as error:
                seconds = backoff.seconds_after(error)
            time.sleep(seconds)

    def _reporting(self) -> AbstractContextManager[None]:
        return errors.reporting(self._address, self._timeout)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, *_: type[BaseException] | BaseException | TracebackType | None
    ) -> None:
        self.close()
