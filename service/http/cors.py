"""Web pages that may ask: those of other sites only where the settings name them."""

from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Scope

from service import values
from service.errors import Forbidden
from service.http.middleware import header
from service.settings import Settings

METHODS = ("GET", "POST")
ASKED = ("authorization", "content-type", "inference-header-content-length")
OURS = ("x-api-key", "x-request-id", "x-request-timeout-ms")
TOLD = ("inference-header-content-length", "retry-after", "server-timing")


def with_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    """The application, for browsers that ask on behalf of the settings' origins (the
    fetch standard's CORS); as it is where there are none."""
    allowed = values.split_list(settings.cors_origins)
    if not allowed:
        return app
    return CORSMiddleware(
        app,
        allow_origins=allowed,
        allow_methods=METHODS,
        allow_headers=[*ASKED, *OURS],
        expose_headers=[*TOLD, "x-request-id"],
    )


def check_websocket_origin(scope: Scope, settings: Settings) -> None:
    """That a WebSocket may be opened. Browsers let any page open one to any host, and
    name the page's origin (RFC 6455, 10.2); who names none is no browser.

    Raises:
        Forbidden: a page of another site.
    """
    origin = header(scope, b"origin")
    allowed = values.split_list(settings.cors_origins)
    if origin is None or origin in allowed or "*" in allowed:
        return
    try:
        same = urlsplit(origin).netloc == header(scope, b"host")
    except ValueError:
        same = False
    if not same:
        raise Forbidden("pages of this origin may open no stream here")
