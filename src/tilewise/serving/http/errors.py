"""Errors as HTTP answers: OpenAI's envelope, without internals."""

from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from tilewise.errors import TilewiseError

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
# What a client is told of a fault of ours.
FAULT = TilewiseError("The server failed on this request; its log says why.")


class RequestError(TilewiseError):
    """A request that HTTP itself, or its form, rules out."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None) -> None:
        """Of this status and code."""
        super().__init__(message, param=param)
        self.status, self.code = status, code


def error_facts(error: TilewiseError) -> dict[str, dict[str, str | None]]:
    """The envelope of an error."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response by orjson."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def error_response(error: TilewiseError, headers: dict[str, str] | None = None) -> Response:
    """An error's response; one that may pass says when to come back, and one that lacks a key, where that goes."""
    return json_response(error_facts(error), error.status, {**_HEADERS.get(error.status, {}), **(headers or {})})


def error_bytes(error: TilewiseError, request_id: str) -> bytes:
    """An error's whole answer as it goes over a connection, which then ends: for what never became a request."""
    response = error_response(error, {"X-Request-Id": request_id, "Connection": "close"})
    lines = [b"HTTP/1.1 %d %b" % (response.status_code, HTTPStatus(response.status_code).phrase.encode())]
    lines += [b"%b: %b" % header for header in response.raw_headers]
    return b"\r\n".join((*lines, b"", bytes(response.body)))
