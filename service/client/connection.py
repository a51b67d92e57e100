"""HTTP that both clients share: credentials, redirects, and the parsing of responses."""

from typing import TypeVar

import httpx

from service.client import results
from service.client.errors import InvalidAnswer, RequestError
from service.client.models import ModelInfo
from service.client.results import NotReady, Ready

T = TypeVar("T")

JSON = {"Content-Type": "application/json"}
# Headers that any origin may see: httpx sets them itself.
PUBLIC_HEADERS = {
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
    "user-agent",
}


def parse_address(url: str) -> httpx.URL:
    """The address of a service.

    Raises:
        ValueError: it is not one of HTTP.
    """
    message = "the address must be http://HOST:PORT or https://HOST:PORT"
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{message}: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ValueError(message)
    return address


def without_credentials(address: httpx.URL) -> str:
    """An address as messages show it."""
    host = address.netloc.decode("ascii")
    return f"{address.scheme}://{host}{address.path.rstrip('/')}"


def raise_for_status(response: httpx.Response) -> None:
    """Raise RequestError for an error or a redirect."""
    if not response.is_success:
        problem = results.problem(response.content)
        status, title = response.status_code, response.reason_phrase
        raise RequestError(status, problem, response.headers, title)


def parse(response: httpx.Response, kind: type[T]) -> T:
    """The body of a response as its documented type.

    Raises:
        RequestError: the response is an error or a redirect, or (InvalidAnswer) its body
            is not as documented.
    """
    raise_for_status(response)
    body = results.parse_json(response.content, response.status_code)
    return results.convert(body, kind, response.status_code)


def parse_reasons(response: httpx.Response) -> list[str]:
    """The reasons in an answer of `GET /readyz`; empty if the service is ready."""
    if response.status_code != 503:
        parse(response, Ready)
        return []
    try:
        body = results.parse_json(response.content, 503)
        return results.convert(body, NotReady, 503)["reasons"]
    except InvalidAnswer:
        return ["not ready"]  # the answer of a proxy


def default_model(task: str, models: list[ModelInfo]) -> str:
    """The name of the model for requests that name none.

    Raises:
        ValueError: there is no such model.
    """
    for model in models:
        if model.default and model.task == task and model.input == "frames":
            return model.name
    raise ValueError(f"the service has no model to {task} by default: name one")


def strip_credentials(base: httpx.URL, request: httpx.Request) -> None:
    """Remove the caller's headers from a request that was redirected to another origin.

    httpx removes `Authorization` only; but an API key may be in any header."""
    url = request.url
    if (url.scheme, url.host, url.port) != (base.scheme, base.host, base.port):
        for name in set(request.headers) - PUBLIC_HEADERS:
            del request.headers[name]


async def strip_credentials_async(base: httpx.URL, request: httpx.Request) -> None:
    """`strip_credentials` for asyncio."""
    strip_credentials(base, request)


def raise_redirect(response: httpx.Response) -> None:
    """Raise a RequestError for a redirect before httpx builds the next request, which
    raises other exceptions if the location is invalid."""
    if response.has_redirect_location:
        response.read()
        raise_for_status(response)


async def raise_redirect_async(response: httpx.Response) -> None:
    """`raise_redirect` for asyncio."""
    if response.has_redirect_location:
        await response.aread()
        raise_for_status(response)
