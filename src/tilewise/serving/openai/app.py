"""The HTTP application: OpenAI's routes and a server's own, each documented in /openapi.json."""

import asyncio
import time
from typing import Any, cast

from fastapi import APIRouter, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from tilewise import __version__
from tilewise.errors import InputError, TilewiseError
from tilewise.serving.http.errors import RequestError, error_response, json_response
from tilewise.serving.http.gateway import PUBLIC_PATHS, Gateway
from tilewise.serving.http.routes import BodyRoute
from tilewise.serving.openai.chat import create_chat_completion
from tilewise.serving.openai.completions import create_completion
from tilewise.serving.openai.responses import create_response
from tilewise.serving.openai.schema.tokens import DetokenizeRequest, TokenizeRequest
from tilewise.serving.service import Service, service_of
from tilewise.types import GenerationConfig

_STARTED_AT = int(time.time())
_REFUSALS: dict[int | str, str] = {
    400: "The request cannot be answered as it is; `param` names the field.",
    401: "A key is missing or wrong.",
    404: "No such route or model.",
    408: "The body arrived too slowly.",
    413: "The body or a picture is too large.",
    429: "Too many requests are waiting; Retry-After says when to come back.",
    500: "The server failed.",
    503: "Loading, shutting down, or without an engine; Retry-After says when to come back.",
    "4XX": "Refused for another reason.",
}


def _document(text: str, *fields: str, kind: str = "application/json") -> dict[str, Any]:
    """A response in the document: an object that has these fields, or a text."""
    schema = {"type": "object", "required": fields} if fields else {"type": "string"}
    return {"description": text, "content": {kind: {"schema": schema}}}


def create_app(service: Service) -> FastAPI:
    """The application around a service. It is documented by a document, not by a page of others' scripts."""
    app = FastAPI(title="Tilewise", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    posts, gets = APIRouter(route_class=BodyRoute), APIRouter()
    completion = _document("The answer.", "id", "object", "created", "model", "choices", "usage")
    answer = _document("The answer.", "id", "object", "created_at", "status", "model", "output", "usage")
    for document in (completion, answer):
        document["content"]["text/event-stream"] = {}
    card = _document("A model.", "id", "object", "created", "owned_by", "max_model_len", "tilewise")
    for router, method, path, endpoint, document in (
        (posts, "POST", "/v1/chat/completions", create_chat_completion, completion),
        (posts, "POST", "/v1/completions", create_completion, completion),
        (posts, "POST", "/v1/responses", create_response, answer),
        (posts, "POST", "/tokenize", tokenize, _document("Ids.", "count", "max_model_len", "tokens")),
        (posts, "POST", "/detokenize", detokenize, _document("The text.", "prompt")),
        (gets, "GET", "/v1/models", list_models, _document("The models.", "object", "data")),
        (gets, "GET", "/v1/models/{name:path}", show_model, card),
        (gets, "GET", "/health", show_health, _document("It lives.", "status")),
        (gets, "GET", "/ready", show_ready, _document("It takes requests.", "status")),
        (gets, "GET", "/version", show_version, _document("The version.", "version")),
        (gets, "GET", "/metrics", show_metrics, _document("Metrics.", kind="text/plain")),
    ):
        responses = {200: document, **{status: _document(text, "error") for status, text in _REFUSALS.items()}}
        router.add_api_route(path, endpoint, methods=[method], response_class=Response, responses=responses)
    app.include_router(posts)
    app.include_router(gets)
    app.add_exception_handler(TilewiseError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_middleware(Gateway, service.api_keys)
    if service.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.allow_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    _complete_document(app.openapi(), service)
    return app


def _complete_document(document: dict[str, Any], service: Service) -> None:
    """Say what FastAPI cannot know: keys are checked by the gateway, one model is served, and 422 is never answered."""
    for path, item in document["paths"].items():
        for operation in item.values():
            operation["responses"].pop("422", None)
            if service.api_keys and path not in PUBLIC_PATHS:
                operation["security"] = [{"key": []}]
            for parameter in operation.get("parameters", ()):
                parameter["schema"]["enum"] = [service.model_name]
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for schema in schemas.values():
        if "model" in schema["properties"]:
            may_lack = "model" not in schema.get("required", ())
            schema["properties"]["model"] = {"enum": [service.model_name, *([None] if may_lack else [])]}
    if service.api_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}


async def _answer_error(request: Request, error: Exception) -> Response:
    return error_response(cast(TilewiseError, error))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "unknown_route", 405: "method_not_allowed"}
    text = f"{error.detail}; /openapi.json lists the routes."
    told = RequestError(error.status_code, codes.get(error.status_code, "invalid_request"), text)
    return error_response(told, dict(error.headers or {}))


async def tokenize(request: Request, body: TokenizeRequest) -> Response:
    """Count and list the ids of a text, or of a conversation with its template and pictures."""
    service = service_of(request)
    service.check_model(body.model)
    builder = service.engine.builder
    if body.prompt is None:
        built = await service.engine.build(body.conversation, GenerationConfig(), request.state.namespace)
        ids = list(built.token_ids)
    else:
        # Nobody can use more ids than a session holds, and encoding takes up to 1 s and 330 MiB a megabyte.
        most = builder.session_len
        if await asyncio.to_thread(builder.tokenizer.is_far_longer, body.prompt, most):
            raise InputError(f"The text takes more than the {most} tokens of a session; cut it.", param="prompt")
        ids = await asyncio.to_thread(builder.tokenizer.encode, body.prompt)
    return json_response({"count": len(ids), "max_model_len": builder.session_len, "tokens": ids})


async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
    """Give the text of ids; ids outside the vocabulary are refused."""
    service = service_of(request)
    service.check_model(body.model)
    tokenizer = service.engine.builder.tokenizer
    if body.tokens and max(body.tokens) >= tokenizer.vocab_size:
        raise InputError(f"The model's ids end at {tokenizer.vocab_size - 1}; got {max(body.tokens)}.", param="tokens")
    return json_response({"prompt": await asyncio.to_thread(tokenizer.decode, body.tokens, body.skip_special_tokens)})


def _model_card(service: Service) -> dict[str, Any]:
    builder = service.engine.builder
    return {
        "id": service.model_name,
        "object": "model",
        "created": _STARTED_AT,
        "owned_by": "tilewise",
        "max_model_len": builder.session_len,
        "tilewise": {
            "tokens_per_tile": builder.model.tokens_per_tile,
            "tile_size": builder.tiling.tile_size,
            "max_dynamic_patch": builder.tiling.max_tiles,
            "min_dynamic_patch": builder.tiling.min_tiles,
            "use_thumbnail": builder.tiling.use_thumbnail,
            "is_demo": service.is_demo,
            "is_random": builder.model.is_random,
        },
    }


async def list_models(request: Request) -> Response:
    """The one model that is served."""
    return json_response({"object": "list", "data": [_model_card(service_of(request))]})


async def show_model(request: Request, name: str) -> Response:
    """The model of this name."""
    service_of(request).check_model(name)
    return json_response(_model_card(service_of(request)))


async def show_health(request: Request) -> Response:
    """Whether the engine lives; read from its heartbeat, never by generating."""
    if not service_of(request).engine.is_healthy:
        raise RequestError(503, "unhealthy", "The engine is gone, or its heartbeat is.")
    return json_response({"status": "ok"})


async def show_ready(request: Request) -> Response:
    """Whether new requests are taken."""
    if not service_of(request).engine.is_ready:
        raise RequestError(503, "not_ready", "Loading, shutting down, or without an engine.")
    return json_response({"status": "ready"})


async def show_version(request: Request) -> Response:
    """The server's version."""
    return json_response({"version": __version__})


async def show_metrics(request: Request) -> Response:
    """Counters and histograms in Prometheus' text format."""
    return Response(service_of(request).engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)
