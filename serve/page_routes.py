"""The chat page at ``/``: static files, read once, sent under a content policy that lets nothing else in."""

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # The browser itself refuses innerHTML and its like: a model's text can't become markup even by a slip of ours.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Browsers keep the files but ask whether they changed: after an upgrade, no old script meets a new page.
    "Cache-Control": "no-cache",
}


class PageFile:
    """One file of the page, as an endpoint.

    Args:
        path: its suffix must be one of ``MEDIA_TYPES``.
    """

    def __init__(self, path: Path):
        self._body = path.read_bytes()
        etag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'
        self._headers = {**HEADERS, "ETag": etag}
        self._media_type = MEDIA_TYPES[path.suffix]
        self._etag = etag

    async def answer(self, request: Request) -> Response:
        """The file, or 304 if the client has it."""
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
        if self._etag in known or "*" in known:
            return Response(status_code=304, headers=self._headers)
        return Response(self._body, media_type=self._media_type, headers=self._headers)


def page_routes(folder: Path = FOLDER) -> list[Route]:
    """Routes of the page: ``/`` and ``/page/<file>``.

    Only what lies in the folder at start-up is served; no request reaches the file system.
    """
    files = {path.name: PageFile(path) for path in sorted(folder.iterdir()) if path.suffix in MEDIA_TYPES}
    routes = [Route("/", files.pop("index.html").answer, methods=["GET"], name="page")]
    return routes + [
        Route(f"/page/{name}", file.answer, methods=["GET"], name=f"page-{name}") for name, file in files.items()
    ]


routes: list[Route] = page_routes()
PUBLIC_PATHS = frozenset(route.path for route in routes)
"""The page holds no secret and needs no API key, which a browser can't send before the page has asked for it."""
