"""How a route gets its body: read, checked and answered while its client is there."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Protocol, get_type_hints

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from tilewise.errors import InputError
from tilewise.serving.http.body import held_body_of, read_json
from tilewise.serving.http.events import while_connected
from tilewise.serving.service import service_of


class BodyKind(Protocol):
    """What a route needs to know of its body's class."""

    asks_for_answer: ClassVar[bool]

    @classmethod
    def read(cls, data: object) -> Any:
        """Check a parsed body; an `InputError` where a field is refused."""

    @classmethod
    def in_api_names(cls, error: InputError) -> InputError:
        """An error of a deeper layer in the words of the route."""
        ...


class BodyRoute(APIRoute):
    """A route whose endpoint takes (request, body): the body is read, parsed and checked off the event loop.

    FastAPI itself, which documents the body, would do all that on the loop. The endpoint is cancelled when the
    client leaves, and what asks for an answer is refused before its body is read where there is no room. A body that is
    on its way while the server ends is waited for, as answers are: who is told something amid sending may not hear it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        kind: BodyKind = get_type_hints(self.endpoint)["body"]

        async def handle(request: Request) -> Response:
            engine = service_of(request).engine
            if kind.asks_for_answer:
                engine.check_room(request.state.namespace)
            with held_body_of(request) as held:
                try:
                    body = await engine.until_drained(asyncio.ensure_future(read_json(request, kind.read, held)))
                    return await while_connected(request.receive, self.endpoint(request, body))
                except InputError as error:
                    raise kind.in_api_names(error) from None

        return handle
