"""Cross-origin requests: which other sites' pages may call the service (CORS)."""

from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Scope

from service import values
from service.errors import Forbidden
from service.http.middleware import header
from service.settings import Settings

METHODS = ("GET", "POST")
STANDARD_HEADERS = ("authorization", "content-type", "inference-header-content-length")
OWN_HEADERS = ("x-api-key", "x-request-id", "x-request-timeout-ms")
EXPOSED = ("inference-header-content-length", "retry-after", "server-timing")


def with_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Wrap the app in CORS middleware for the origins in the settings, if there are any."""
    origins = values.split_list(settings.cors_origins)
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=METHODS,
        allow_headers=[*STANDARD_HEADERS, *OWN_HEADERS],
        expose_headers=[*EXPOSED, "x-request-id"],
    )


def check_websocket_origin(scope: Scope, settings: Settings) -> None:
    """Allow a WebSocket from the service's own pages and from the origins in the settings.

    CORS does not cover WebSockets: browsers let any page open one to any host, and name
    the page's origin (RFC 6455, 10.2). A client that names none is not a browser.

    Raises:
        Forbidden: the page is of another site.
    """
    origin = header(scope, b"origin")
    origins = values.split_list(settings.cors_origins)
    if origin is None or origin in origins or "*" in origins:
        return
    try:
        same = urlsplit(origin).netloc == header(scope, b"host")
    except ValueError:
        same = False
    if not same:
        raise Forbidden("pages of this origin may not open a stream")
