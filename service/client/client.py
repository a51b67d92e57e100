"""The blocking client of the HTTP API.

>>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
...     client.classify([frames]).predictions[0].label
'7'

A sequence is an array [T, F], or nested lists of that shape. `service.client.errors`
lists the exceptions that both clients raise.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from functools import partial
from ssl import SSLContext
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx

from service.client import connection, errors, requests, tables
from service.client.calls import (
    ATTEMPTS,
    PARALLEL,
    Answer,
    Call,
    Progress,
    VersionChanged,
)
from service.client.models import Limits, ModelDetails, ModelInfo, Models
from service.client.requests import Arguments, Part
from service.client.results import Classifications, Labellings
from service.client.retries import Backoff
from service.client.stream import Stream
from service.client.stream_session import StreamSession
from service.client.tables import Data, Names

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
            timeout: seconds to wait for an answer, in each attempt.
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
        self._timeout, self._headers, self._verify = timeout, headers, verify
        self._retries, self._retry_seconds = retries, retry_seconds
        self._address = connection.without_credentials(self._http.base_url)

    def classify(
        self,
        sequences: Data,
        *,
        by: str | None = None,
        step: str | None = None,
        label: str | None = None,
        ignore: Sequence[str] = (),
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
        progress: Progress | None = None,
    ) -> Classifications:
        """Predict one class for each sequence.

        Args:
            sequences: each of shape [T, F], of any lengths; or a DataFrame of pandas or
                polars with a row for each step. Its columns are matched by the names of
                the model's features, in any order. Or texts, lists of words, or lists of
                records (objects), for a model that reads them.
            by: column of a DataFrame with the ids of sequences. Default: as in training,
                or `sequence`; without such a column all rows are one sequence.
            step: column that orders the rows of a sequence. Default: as in training, or
                `step`.
            label: column of the true labels, for `to_dict`. Default: as in training, or
                `label`.
            ignore: columns that are no features, if features have no names.
            model: name, `NAME@VERSION` or `NAME@LABEL`; the service's default if None.
            top_k: return only the likeliest classes, as `top`.
            states: for each sequence the state token to continue from, or None.
            return_state: return a state token with each prediction, as `state`.
            progress: called with the number of sequences answered so far, and of all.

        A call that is larger than the service's limits is sent as several requests, a few
        at a time, which one version of the model answers. A single sequence must be within
        the limits.

        Raises:
            RequestError: the service refuses the request.
            ConnectionLost: there is no answer.
            ValueError: a sequence is not an array of numbers, or a column is missing.
        """
        names = Names(by, step, label, tuple(ignore))
        data = tables.collect(sequences)
        arguments = Arguments(data, names, model, top_k, states, return_state, progress)
        return self._predict("classify", Classifications, arguments)

    def label(
        self,
        sequences: Data,
        *,
        by: str | None = None,
        step: str | None = None,
        label: str | None = None,
        ignore: Sequence[str] = (),
        model: str | None = None,
        top_k: int | None = None,
        states: Sequence[str | None] | None = None,
        return_state: bool = False,
        progress: Progress | None = None,
    ) -> Labellings:
        """Predict one class for each step of each sequence; see `classify`."""
        names = Names(by, step, label, tuple(ignore))
        data = tables.collect(sequences)
        arguments = Arguments(data, names, model, top_k, states, return_state, progress)
        return self._predict("label", Labellings, arguments)

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
        ...         print(stream.label([frame]).labels)

        Args:
            state: state token to continue from.
            resume: request a state token with each answer, so that the stream resumes
                when the connection breaks or the service restarts.

        Of the client's options a stream uses only `headers`, `verify` and the timeout.
        """
        session = StreamSession(
            self._http.base_url,
            model,
            top_k,
            state,
            resume,
            self._timeout,
            self._headers,
            self._verify,
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

    def _predict(self, task: str, kind: type[Answer], arguments: Arguments) -> Answer:
        for _ in range(ATTEMPTS - 1):
            with suppress(VersionChanged):
                return self._attempt(task, kind, arguments)
        return self._attempt(task, kind, arguments)

    def _attempt(self, task: str, kind: type[Answer], arguments: Arguments) -> Answer:
        details = None
        if tables.is_dataframe(arguments.data):
            name = arguments.model or connection.default_model(task, self.models())
            details = self.model(name)
        request = requests.prepare(arguments, details)
        progress = arguments.progress
        call = Call(task, kind, request, None, progress, self._address)
        if not call.is_large:
            try:
                answer = self._request("POST", call.path, kind, call.encode(call.first))
                call.add(call.first, [answer])
                return call.result()
            except errors.RequestError as error:
                call.split(
                    call.first, error
                )  # raises an error that parts would get too
        limits = self._limits()
        call = Call(task, kind, request, limits, progress, self._address)
        stop = threading.Event()
        call.add(call.first, self._send(call, call.first, stop))
        if call.is_large:
            self._send_parts(call, stop)
        return call.result()

    def _limits(self) -> Limits | None:
        """The limits of a request; None if the service doesn't say."""
        try:
            return self._request("GET", "/models", Models).limits
        except errors.RequestError:
            return None

    def _send(
        self, call: Call[Answer], part: Part, stop: threading.Event
    ) -> list[Answer]:
        """The answers to a part: one, or several if the part is too large."""
        try:
            body = call.encode(part)
            return [self._request("POST", call.path, call.kind, body, stop)]
        except errors.RequestError as error:
            parts = call.split(part, error)
        answers = [self._send(call, half, stop) for half in parts]
        return [answer for several in answers for answer in several]

    def _send_parts(self, call: Call[Answer], stop: threading.Event) -> None:
        futures: deque[tuple[Part, Future[list[Answer]]]] = deque()
        failures: list[BaseException] = []  # the first one is that of the call

        def send(part: Part) -> list[Answer]:
            try:
                return self._send(call, part, stop)
            except BaseException as error:
                failures.append(error)
                stop.set()  # those before it are not sent again, either
                raise

        try:
            for part in call.parts:
                futures.append((part, _start(partial(send, part))))
                if len(futures) == PARALLEL:
                    first, future = futures.popleft()
                    call.add(first, future.result())
            for part, future in futures:
                call.add(part, future.result())
        except errors.ClientError as error:
            raise (failures[0] if failures else error) from None
        finally:
            stop.set()

    def _request(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: bytes | None = None,
        stop: threading.Event | None = None,
    ) -> T:
        """Send a request, and again if need be; not after `stop`."""
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
                if (stop or threading.Event()).wait(backoff.seconds_after(error)):
                    raise

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


def _start(function: Callable[[], T]) -> "Future[T]":
    """Call a function in a thread of its own.

    The interpreter waits for the threads of an executor when it exits: after Ctrl-C, for
    the answers of a service that hangs. It doesn't wait for this one.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="part of a call", daemon=True).start()
    return future
