"""The page's files, and the headers that keep it to this server.

The policy allows scripts and styles from here only, and connections to here only: whatever a model,
a tool or a conversation says, the page asks no other host for anything. Figures need the key, which
no ``<img>`` sends: the page's script fetches them and shows them as blobs of its own.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from pygments.formatters import HtmlFormatter
from starlette.requests import Request
from starlette.responses import Response

from gptoss.runtime.server.errors import not_found

_FILES = {
    "index.html": "text/html",
    "app.js": "text/javascript",
    "api.js": "text/javascript",
    "conversation.js": "text/javascript",
    "reply.js": "text/javascript",
    "sidebar.js": "text/javascript",
    "tools.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}

OPEN_PATHS = frozenset(
    {"/", "/page/login", "/page/highlight.css", *(f"/page/{name}" for name in _FILES)}
)
"""What the page needs before it has a key."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}


async def send_file(request: Request) -> Response:
    """Send one of the page's files."""
    name = request.path_params.get("name", "index.html")
    if name == "highlight.css":
        return Response(_highlight_css(), media_type="text/css", headers=_HEADERS)
    if name not in _FILES:
        raise not_found("no such file")
    content = files("gptoss.runtime.server.page").joinpath("static", name).read_bytes()
    return Response(content, media_type=_FILES[name], headers=_HEADERS)


@cache
def _highlight_css() -> str:
    """Return the colours of code in the page, for light and dark."""
    light, dark = (
        HtmlFormatter(style=style, classprefix="hl-").get_style_defs([".code", ".call"])  # type: ignore[no-untyped-call]
        for style in ("default", "github-dark")
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
