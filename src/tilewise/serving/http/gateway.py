"""What stands between a socket and a route: keys, header limits, request ids, the access log.

`Gateway` is plain ASGI and decides on `scope["path"]` alone, before any routing: whatever is not public needs a key,
or, where there are none, a Host that no other site can have made point here.
It logs every request once. Its own refusals, and faults that no route answered, get OpenAI's envelope from `errors`.
"""

import hashlib
import hmac
import logging
import re
import time
import uuid
from typing import cast

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tilewise.serving.http.errors import FAULT, RequestError, error_response
from tilewise.serving.http.hosts import is_rebound

access_log = logging.getLogger("tilewise.access")
logger = logging.getLogger(__name__)

PUBLIC_PATHS = frozenset({"/health", "/ready"})
_MAX_HEADERS, _MAX_HEADER_BYTES = 100, 32 << 10
_CLIENT_LEFT = 499
_MOST_LOGGED_BYTES = 1024
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def _is_not_sending() -> bool:
    """Where no connection of ours says whether its client has sent all of its request."""
    return False


def create_request_id() -> str:
    """A name that no other request has."""
    return uuid.uuid4().hex


def log_refusal(request_id: str, first_line: bytes, status: int, peer: tuple[str, int] | None) -> None:
    """Log what was refused before it became a request; of its first line, what can be read."""
    method, _, rest = first_line[:_MOST_LOGGED_BYTES].decode("ascii", errors="replace").partition(" ")
    facts = {
        "request_id": request_id,
        "method": method[:20],
        "path": rest.partition(" ")[0].partition("?")[0][:200],
        "status": status,
        "peer": peer[0] if peer else "",
    }
    access_log.info("%(method)r %(path)r %(status)s, malformed, from %(peer)s, %(request_id)s", facts)


class Gateway:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...] = ()) -> None:
        """Without keys everybody may come in."""
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        started_at, status = time.perf_counter(), 0
        given = [value for name, value in scope["headers"] if name == b"x-request-id"]
        is_sane = len(given) == 1 and _SANE_ID.fullmatch(given[0]) is not None
        request_id = given[0].decode() if is_sane else create_request_id()
        # NOTE: where the bytes after the head were refused already, the client knows this id.
        request_id = scope["state"].setdefault("request_id", request_id)

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if scope["state"].get("is_sending", _is_not_sending)():
                    message["headers"].append((b"connection", b"close"))  # what still comes is not read
            await send(message)

        try:
            refusal = self._refuse(scope)
            await (error_response(refusal) if refusal else self._app)(scope, receive, send_named)
        except (ClientDisconnect, OSError):
            status = scope["state"].get("refused_status", _CLIENT_LEFT)
        except Exception:
            logger.exception("request %s failed", request_id)
            if not status:
                await error_response(FAULT)(scope, receive, send_named)
        finally:
            status = status or scope["state"].get("refused_status", _CLIENT_LEFT)
            facts = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "duration_s": round(time.perf_counter() - started_at, 4),
            }
            access_log.info("%(method)s %(path)r %(status)s in %(duration_s).3f s, %(request_id)s", facts)

    def _refuse(self, scope: Scope) -> RequestError | None:
        """Why a request may not come in; of one that may, whose cache it uses is noted."""
        headers = cast(list[tuple[bytes, bytes]], scope["headers"])
        if len(headers) > _MAX_HEADERS or sum(len(n) + len(v) for n, v in headers) > _MAX_HEADER_BYTES:
            return RequestError(431, "headers_too_large", "The request's headers are too large.")
        state = scope["state"]
        state["namespace"] = ""
        if scope["path"] in PUBLIC_PATHS:
            return None
        if state.get("is_full"):
            text = "All connections of this server are busy; try again later."
            return RequestError(503, "too_many_connections", text)
        if not self._digests:
            if is_rebound(scope):
                text = "Without API keys only this machine's own names are answered; call it localhost, or set keys."
                return RequestError(421, "unknown_host", text)
            return None
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        digest = hashlib.sha256(key.strip()).digest()
        # Every key is compared, each in constant time.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(matches):
            return RequestError(401, "invalid_api_key", "Send a valid key: 'Authorization: Bearer KEY'.")
        state["namespace"] = digest.hex()[:32]
        return None
