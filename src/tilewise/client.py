"""A Python client of the HTTP API, by the names of LMDeploy's `APIClient`.

Owns what goes over the wire and how the server's refusals become the errors of this package; no torch, no engine.
Pictures may be Pillow images and paths: they travel inside the request. Leaving a stream aborts the answer.
"""

import base64
import ipaddress
import json
import mimetypes
import os
import ssl
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx

from tilewise.errors import CapacityError, EngineError, ImageError, InputError, TilewiseError
from tilewise.files import read_file

_CONNECT_TIMEOUT_S = 10.0
# More than any server of ours takes in one body.
_MAX_PICTURE_BYTES = 64 << 20
_REMOTE = ("http://", "https://", "data:")


class APIClient:
    """Talks to one server; every call opens its own connection, so threads may share a client.

    Units: `timeout` in seconds, the longest silence of the server while it answers.

    Raises:
        InputError: from any call, where the server refuses what was asked, in its words.
        CapacityError: the server is full; try again.
        EngineError: no server answers, or it failed.
    """

    def __init__(self, server_url: str, api_key: str | None = None, timeout: float = 600.0) -> None:
        """Connect to nothing yet."""
        parts = urlsplit(server_url if "://" in server_url else f"http://{server_url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{server_url!r:.200} is no server; give one as http://127.0.0.1:23333.", param="server")
        self.server_url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        is_own = is_loopback(parts.hostname)
        certificates = os.environ.get("SSL_CERT_FILE")
        self._options: dict[str, Any] = {
            "base_url": self.server_url,
            "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            "timeout": httpx.Timeout(timeout, connect=_CONNECT_TIMEOUT_S),
            "trust_env": not is_own,  # a proxy would be asked for its own loopback
            "verify": ssl.create_default_context(cafile=certificates) if is_own and certificates else True,
        }

    @property
    def available_models(self) -> list[str]:
        """Names that requests may ask for."""
        return [str(model["id"]) for model in self.describe_models()]

    def describe_models(self) -> list[dict[str, Any]]:
        """What the server says of each model: its `id`, `max_model_len`, and how it cuts pictures."""
        return self._call("GET", "/v1/models")["data"]

    def health(self) -> bool:
        """Whether a server answers and its engine is alive."""
        return self._succeeds("/health")

    def is_ready(self) -> bool:
        """Whether it has loaded, and takes requests."""
        return self._succeeds("/ready")

    def chat_completions_v1(self, model: str, messages: Any, *, stream: bool = False, **options: Any) -> Any:
        """The next turn of a conversation: the response's dict, or with `stream` an iterator of its chunks.

        `messages` is a text or OpenAI's list; in an `image_url` part, `url` may be a Pillow image or a path too.
        `options` are the request's further fields, as `temperature` or `max_tokens`.
        """
        return self._ask("/v1/chat/completions", chat_body(model, messages, stream=stream, **options))

    def completions_v1(self, model: str, prompt: str | list[str], *, stream: bool = False, **options: Any) -> Any:
        """Continue a text: the response's dict, or with `stream` an iterator of its chunks."""
        return self._ask("/v1/completions", {"model": model, "prompt": prompt, "stream": stream, **options})

    def encode(self, text: str) -> tuple[list[int], int]:
        """The ids of a text, without the template's, and how many there are."""
        answer = self._call("POST", "/tokenize", {"prompt": text})
        return answer["tokens"], answer["count"]

    def decode(self, input_ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._call("POST", "/detokenize", {"tokens": list(input_ids)})["prompt"]

    async def stream_chat(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks of the answer to a `chat_body`, for an event loop: cancelling the task aborts the answer at once."""
        with _in_our_words(self.server_url):
            async with (
                httpx.AsyncClient(**self._options) as client,
                client.stream("POST", "/v1/chat/completions", json=body) as response,
            ):
                if response.is_error:
                    raise _read_error(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if (chunk := _read_event(line)) is not None:
                        yield chunk

    def _succeeds(self, path: str) -> bool:
        with suppress(TilewiseError):
            self._call("GET", path)
            return True
        return False

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._stream(path, body) if body["stream"] else self._call("POST", path, body)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        with self._request(method, path, body) as response:
            data = response.read()
            return json.loads(data) if data else None

    def _stream(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any]]:
        with self._request("POST", path, body) as response:
            for line in response.iter_lines():
                if (chunk := _read_event(line)) is not None:
                    yield chunk

    @contextmanager
    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Generator[httpx.Response]:
        with (
            _in_our_words(self.server_url),
            httpx.Client(**self._options) as client,
            client.stream(method, path, json=body) as response,
        ):
            if response.is_error:
                raise _read_error(response.status_code, response.read())
            yield response


def chat_body(model: str, messages: Any, **options: Any) -> dict[str, Any]:
    """The JSON of a chat request: options at None left out, pictures inside it.

    Raises:
        ImageError: a picture cannot be read.
    """
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    given = {name: value for name, value in options.items() if value is not None}
    return {"model": model, "messages": [_without_pictures_apart(turn) for turn in turns], **given}


def to_data_url(picture: Any) -> str:
    """A picture as a data URL: a file's own bytes, a Pillow image as PNG; http(s) and data URLs as they are."""
    if isinstance(picture, str) and picture.lower().startswith(_REMOTE):
        return picture
    if not isinstance(picture, (str, Path)):
        from tilewise.vl import encode_image_base64

        return f"data:image/png;base64,{encode_image_base64(picture)}"
    kind = mimetypes.guess_type(str(picture))[0] or "application/octet-stream"
    try:
        return f"data:{kind};base64,{base64.b64encode(read_file(picture, _MAX_PICTURE_BYTES)).decode('ascii')}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "there is none"
        raise ImageError(f"No picture can be read at {str(picture)!r:.200}: {reason}. Check the path.") from None


def _without_pictures_apart(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return dict(message)
    return {**message, "content": [_embed_picture(part) for part in cast(Sequence[Any], content)]}


def _embed_picture(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    fields = cast(Mapping[str, Any], part)
    if fields.get("type") != "image_url":
        return fields
    image_url = fields["image_url"]
    return {"type": "image_url", "image_url": {**image_url, "url": to_data_url(image_url["url"])}}


def is_loopback(host: str) -> bool:
    """Whether a host, as an address or by its usual name, is this machine alone."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@contextmanager
def _in_our_words(server_url: str) -> Generator[None]:
    try:
        yield
    except httpx.TimeoutException:
        raise EngineError(f"The server at {server_url} did not answer in time; look at its log.") from None
    except httpx.ConnectError:
        raise EngineError(f"No server answers at {server_url}; start one with: tilewise serve api_server") from None
    except (httpx.HTTPError, httpx.StreamError, json.JSONDecodeError):
        raise EngineError(f"The server at {server_url} broke off, or speaks another language than ours.") from None


def _read_event(line: str) -> dict[str, Any] | None:
    """One line of a stream: a chunk, or None for what holds none."""
    if not line.startswith("data:") or (data := line[5:].strip()) == "[DONE]":
        return None
    chunk = json.loads(data)
    if "error" in chunk:
        raise _create_error(500, chunk["error"])
    return chunk


def _read_error(status: int, body: bytes) -> TilewiseError:
    with suppress(ValueError, KeyError, TypeError):
        return _create_error(status, json.loads(body)["error"])
    return _create_error(status, {"message": f"The server answered with status {status}."})


def _create_error(status: int, said: Mapping[str, Any]) -> TilewiseError:
    """The error of the server's code, or else of its status; status and code stay the server's."""
    code = said.get("code")
    by_status = CapacityError if status in (429, 503) else EngineError if status >= 500 else InputError
    kind = {kind.code: kind for kind in _kinds(TilewiseError)}.get(str(code), by_status)
    error = kind(str(said.get("message")), param=said.get("param"))
    error.status = status
    error.code = str(code or error.code)
    return error


def _kinds(kind: type[TilewiseError]) -> list[type[TilewiseError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _kinds(child))]
