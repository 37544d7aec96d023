"""What stands around gradio's application: who may ask what, what a browser may load, and in which language."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gradio.routes import App, ORJSONResponse
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from tilewise.page.intake import SESSION, Intake
from tilewise.page.uploads import Uploads
from tilewise.serving.http.hosts import is_cross_origin, is_rebound

# Of the links that gradio gives with --share.
SHARED_HOSTS = (".gradio.live",)
# Whatever an answer's markup wants a browser to load, it asks nothing of other hosts.
_POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; form-action 'self'"
_LEAVE = b"access-control-allow-"  # to pages of other sites
_REFUSAL = PlainTextResponse(
    "The page is not open under this name, or to pages of other sites. Open it as localhost, or by its address; where "
    "a proxy gives it a name, start it with --allowed-hosts NAME.",
    403,
)
_SCRIPT = b"<head><script>%b</script>" % (Path(__file__).parent / "page.js").read_bytes()


# What the page and gradio's own client ask for. Gradio has more routes, which store files that nobody counts (deep
# links, recordings, components' own functions), fetch other hosts' (`file=` with an address, proxies), or write code.
_ROUTES = {
    "GET": re.compile(
        r"/|/config/?|/(assets|static|svelte)/.*|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/.*)?"
        r"|/gradio_api/(info/?|startup-events|app_id/?|heartbeat/[^/]+|queue/(data|status)|call/[^/]+/[^/]+"
        r"|file=(?!(?i:https?:)).+)|" + re.escape(SESSION),
        re.DOTALL,
    ),
    "POST": re.compile(r"/gradio_api/(upload|queue/join|(call|run)/[^/]+/?|cancel|reset/?)"),
}
_NO_ROUTE = PlainTextResponse("The page has no such address.", 404)


class _Gate:
    """ASGI middleware outside of gradio's, which grants pages of every site leave where its Host is not this machine.

    Requests of other sites' pages are refused, and no answer grants them leave. Of gradio's routes those are open that
    the page needs.
    """

    def __init__(self, app: Any, allowed_hosts: Sequence[str]) -> None:
        self._app, self._allowed_hosts = app, allowed_hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_without_leave(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if not pair[0].startswith(_LEAVE)]
            await send(message)

        hosts = self._allowed_hosts
        answer = self._app
        if scope["type"] != "lifespan":
            if is_rebound(scope, hosts) or is_cross_origin(scope, hosts):
                answer = _REFUSAL
            elif not _is_open(scope):
                answer = _NO_ROUTE
        await answer(scope, receive, send_without_leave)


def _is_open(scope: Any) -> bool:
    method = "GET" if scope.get("method") == "HEAD" else scope.get("method")
    return method in _ROUTES and _ROUTES[method].fullmatch(scope["path"]) is not None


class _Frame:
    """ASGI middleware: bounds what the page may load, and chooses its language before gradio does."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_framed(message: Any) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if not is_page or name != b"content-length"]
                message["headers"] = [*kept, (b"content-security-policy", _POLICY)]
            elif is_page and message["type"] == "http.response.body":
                message["body"] = message.get("body", b"").replace(b"<head>", _SCRIPT, 1)
            await send(message)

        is_page = scope.get("path") == "/"
        await self._app(scope, receive, send_framed)


class FramedApp(App):
    """gradio's application, behind a gate and an intake of uploads, and within a frame."""

    def __init__(self, allowed_hosts: Sequence[str], uploads: Uploads, words: Mapping[str, Mapping[str, str]]) -> None:
        """Beside this machine's own names it answers to `allowed_hosts`; refused uploads are told in `words`."""
        options: dict[str, Any] = {"default_response_class": ORJSONResponse, "middleware": [Middleware(_Frame)]}
        cast(Any, super()).__init__(**options)
        self._allowed_hosts = allowed_hosts
        self._uploads = uploads
        self._words = words

    def build_middleware_stack(self) -> Any:
        """See `starlette.applications.Starlette`."""
        return _Gate(Intake(super().build_middleware_stack(), self._uploads, self._words), self._allowed_hosts)
