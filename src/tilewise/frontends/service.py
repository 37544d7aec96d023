"""What the routes of a server share: its settings, its engine, and how a route gets its body."""

import typing
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, cast

from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from tilewise.errors import InputError
from tilewise.frontends.async_engine import AsyncEngine
from tilewise.frontends.door import RequestError, read_json, while_connected
from tilewise.frontends.openai_schema import Body, Generating
from tilewise.inputs.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What an application needs to know beside its engine. Without `api_keys` everybody may ask."""

    model_name: str = "tilewise"
    api_keys: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    is_demo: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """One model that is served."""

    engine: AsyncEngine
    settings: ServerSettings

    @property
    def session_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.engine.builder.session_len

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self.engine.builder.tokenizer

    def check_model(self, name: str | None) -> None:
        """Refuse another model's name.

        Raises:
            RequestError: it is not served here.
        """
        known = self.settings.model_name
        if name not in (None, known):
            raise RequestError(
                404, "model_not_found", f"Model {name!r:.200} is not served here; use {known!r}.", param="model"
            )


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    return cast(Service, request.app.state.service)


class BodyRoute(APIRoute):
    """A route whose endpoint takes (request, body): the body is read, parsed and checked off the event loop.

    FastAPI itself, which documents the body, would do all that on the loop. The endpoint is cancelled when the
    client leaves, and what asks for an answer is refused before its body is read where there is no room.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        kind: type[Body] = typing.get_type_hints(self.endpoint)["body"]

        async def handle(request: Request) -> Response:
            if issubclass(kind, Generating):
                service_of(request).engine.check_room()
            body = await read_json(request, lambda data: check_body(kind, data))
            return await while_connected(request.receive, self.endpoint(request, body))

        return handle


def check_body(kind: type[Body], data: object) -> Body:
    """Check a parsed body.

    Raises:
        InputError: a field is refused; `param` names it.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
    # Of a union's members the one that fits the type says what is wrong.
    first = next((e for e in errors if e["type"] not in ("string_type", "list_type", "dict_type")), errors[0])
    path = ".".join(str(step) for step in first["loc"] if not str(step).startswith(("constrained-", "list[", "dict[")))
    name = f"{path:.80}" or "body"
    if first["type"] == "extra_forbidden":
        raise InputError(f"Field {name!r} is not supported here; leave it out.", param=name)
    given = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
    raise InputError(f"{name}: {first['msg']}{given}.", param=name)
