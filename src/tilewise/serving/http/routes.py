"""What the routes of a server share: its settings, its engine, and how a route gets its body."""

import asyncio
import reprlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_type_hints

from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from tilewise.errors import InputError
from tilewise.serving.async_engine import AsyncEngine
from tilewise.serving.http.gateway import RequestError, read_json, while_connected
from tilewise.serving.openai.schema import Body, Generating

# Of a value of any size it spells out no more than is shown.
_GIVEN = reprlib.Repr()
_GIVEN.maxstring = _GIVEN.maxlong = 80


@dataclass(frozen=True, slots=True)
class Service:
    """One model that is served. Without `api_keys` everybody may ask."""

    engine: AsyncEngine
    model_name: str
    api_keys: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    is_demo: bool = False

    def check_model(self, name: str | None) -> None:
        """Refuse another model's name.

        Raises:
            RequestError: it is not served here.
        """
        if name not in (None, self.model_name):
            text = f"Model {name!r:.200} is not served here; use {self.model_name!r}."
            raise RequestError(404, "model_not_found", text, param="model")


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    return cast(Service, request.app.state.service)


class BodyRoute(APIRoute):
    """A route whose endpoint takes (request, body): the body is read, parsed and checked off the event loop.

    FastAPI itself, which documents the body, would do all that on the loop. The endpoint is cancelled when the
    client leaves, and what asks for an answer is refused before its body is read where there is no room. A body that is
    on its way while the server ends is waited for, as answers are: who is told something amid sending may not hear it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        kind: type[Body] = get_type_hints(self.endpoint)["body"]

        async def handle(request: Request) -> Response:
            engine = service_of(request).engine
            if issubclass(kind, Generating):
                engine.check_room()
            try:
                reading = asyncio.ensure_future(read_json(request, lambda data: check_body(kind, data)))
                body = await engine.until_drained(reading)
                return await while_connected(request.receive, self.endpoint(request, body))
            except InputError as error:
                raise _with_names(error, kind.api_names) from None

        return handle


def _with_names(error: InputError, names: Mapping[str, str]) -> InputError:
    """An error of a deeper layer in the words of a route; a name that is no common word is one in its text too."""
    text = str(error)
    for ours, theirs in names.items():
        text = text.replace(ours, theirs) if "_" in ours else text
    return type(error)(text, param=names.get(error.param or "", error.param))


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
    given = "" if first["type"] == "missing" else f", got {_GIVEN.repr(first['input']):.80}"
    raise InputError(f"{name}: {first['msg']}{given}.", param=name)
