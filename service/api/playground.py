"""The playground: a page that asks this service, and shows what it answers."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PATH = "/playground"
FOLDER = Path(__file__).parent.parent / "playground"
HEADERS = {
    # Nothing but what lies here, so that a class named like a script stays a name.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data: blob:; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked again by its ETag: a new release is seen
}


class Files(StaticFiles):
    """The page's parts, with its headers."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers.update(HEADERS)
        return answer


def page() -> Response:
    """The page itself."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS | {"Vary": "Accept"})


def wanted(request: Request) -> bool:
    """Whether who asks for `/` is a browser, which says that it reads HTML."""
    return "text/html" in request.headers.get("accept", "")
