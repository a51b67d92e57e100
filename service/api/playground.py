"""The playground: a web page that sends requests to this service and shows the answers."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PATH = "/playground"
FOLDER = Path(__file__).parent.parent / "playground"
HEADERS = {
    # Only files of this folder: a class that is named like a script stays text.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data: blob:; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # revalidated by ETag, so that a new release is seen
}


class Files(StaticFiles):
    """The page's files, with its headers."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def page() -> Response:
    """The page itself."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS | {"Vary": "Accept"})


def accepts_html(request: Request) -> bool:
    """Return whether the client is a browser, which accepts HTML."""
    return "text/html" in request.headers.get("accept", "")
