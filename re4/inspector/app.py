"""The web application of the page: routes, access, headers."""

import logging
from hmac import compare_digest
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from re4.common.errors import Re4Error, RequestError
from re4.inspector.state import PageState, read_state
from re4.inspector.view import View, Viewer, num_of

_log = logging.getLogger(__name__)

COOKIE: Final = "re4-inspect"
_PACKAGE: Final = "re4.inspector"
_MAX_QUERY_BYTES: Final = 60_000
_NUM_VALUES: Final = 50
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_ASSETS: Final = {"page.css": "text/css", "page.js": "text/javascript"}
_NO_ACCESS: Final = (
    "This page needs the token that `re4 inspect` printed: open the whole link, ?token=… included."
)


def build_app(viewer: Viewer, *, token: str | None = None, hosts: frozenset[str] | None = None) -> Starlette:
    """Return the application.

    Args:
        viewer: Makes the views.
        token: What visitors must know; None where only this machine reaches the page.
        hosts: Names by which the page may be called, without ports; None for any.
    """
    templates = Environment(
        loader=PackageLoader(_PACKAGE, "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    template = templates.get_template("page.html.j2")

    def page(request: Request) -> Response:
        query = request.url.query
        try:
            if len(query) > _MAX_QUERY_BYTES:
                raise RequestError(
                    f"the link has {len(query):,} bytes; at most {_MAX_QUERY_BYTES:,} are allowed"
                )
            pairs = parse_qsl(query, max_num_fields=10_000)
            state, has_acted = read_state([pair for pair in pairs if pair[0] != "token"])
        except (Re4Error, ValueError) as error:
            empty = View(state=PageState(), names=viewer.sources.names(), problem=str(error))
            return HTMLResponse(template.render(view=empty, num_of=num_of), status_code=400)
        if has_acted or "token" in request.query_params:
            return RedirectResponse(state.link(), status_code=303)
        view = viewer.view(state)
        return HTMLResponse(template.render(view=view, num_of=num_of))

    def values(request: Request) -> Response:
        """Return values of an attribute for the suggestions of an input."""
        given = request.query_params
        try:
            source = viewer.sources.open(given.get("source") or viewer.sources.names()[0].key)
            like = given.get("like", "")
            found = source.list_values(given.get("name", ""), like=like, num_values=_NUM_VALUES)
        except Re4Error as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        return JSONResponse({"values": found})

    def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _ASSETS:
            return Response("not found", status_code=404, media_type="text/plain")
        content = files(_PACKAGE).joinpath("page", name).read_bytes()
        return Response(content, media_type=f"{_ASSETS[name]}; charset=utf-8")

    def no_icon(_: Request) -> Response:
        return Response(status_code=204)

    def failed(_: Request, error: Exception) -> Response:
        _log.error("the page failed", exc_info=error)
        return Response(
            "The page failed; the terminal of `re4 inspect` shows why.",
            status_code=500,
            media_type="text/plain",
        )

    return Starlette(
        routes=[
            Route("/", page),
            Route("/favicon.ico", no_icon),
            Route("/values", values),
            Route("/page/{name}", asset),
        ],
        middleware=[Middleware(_Access, token=token, hosts=hosts)],
        exception_handlers={Exception: failed},
    )


class _Access:
    """Checks the host and the token of each request, and adds headers to each answer.

    A page of another site may send a browser to this one under a name of its own (DNS rebinding): requests
    under other names are refused.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [
                    (name.lower().encode(), value.encode()) for name, value in _HEADERS.items()
                ]
            await send(message)

        request = Request(scope)
        answer: ASGIApp = self._refusal(request) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if self._hosts is not None and (request.url.hostname or "") not in self._hosts:
            return Response(
                "This page answers to its own address alone.", status_code=400, media_type="text/plain"
            )
        if self._token is None:
            return None
        given = request.query_params.get("token")
        if given is not None and compare_digest(given.encode(), self._token.encode()):
            rest = [pair for pair in request.query_params.multi_items() if pair[0] != "token"]
            response = RedirectResponse(f"/?{urlencode(rest)}" if rest else "/", status_code=303)
            response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            return response
        if compare_digest(request.cookies.get(COOKIE, "").encode(), self._token.encode()):
            return None
        return Response(_NO_ACCESS, status_code=401, media_type="text/plain")
