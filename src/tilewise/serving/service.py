"""One model that is served: its engine, and to whom it answers under which name."""

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from tilewise.serving.async_engine import AsyncEngine
from tilewise.serving.http.errors import RequestError


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
