"""A server that speaks the API and says what the test tells it to: the double for clients and for error cases."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CUT = {
    "tokens_per_tile": 256,
    "tile_size": 448,
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "use_thumbnail": True,
    "is_demo": True,
    "is_random": False,
}
USAGE = {
    "prompt_tokens": 1831,
    "completion_tokens": 3,
    "total_tokens": 1834,
    "prompt_tokens_details": {"cached_tokens": 64, "image_tokens": 1792},
}


@dataclass(frozen=True)
class Refusal:
    """An answer with a status and an error in OpenAI's envelope; within a stream, after `before`."""

    status: int
    message: str
    code: str = "invalid_request"
    before: tuple[str, ...] = ()


@contextlib.contextmanager
def gradios_loops_closed() -> Iterator[None]:
    """Close at the end the event loops that gradio makes for its locks, and never uses."""
    made: list[asyncio.AbstractEventLoop] = []
    new_event_loop = asyncio.new_event_loop

    def make() -> asyncio.AbstractEventLoop:
        made.append(new_event_loop())
        return made[-1]

    asyncio.new_event_loop = make
    try:
        yield
    finally:
        asyncio.new_event_loop = new_event_loop
        asyncio.set_event_loop(None)
        for loop in made:
            loop.close()


Script = Callable[[dict[str, Any]], Sequence[str] | Refusal]


@dataclass
class Double:
    """`script` gives the pieces of an answer."""

    script: Script = lambda body: ("The answer ", "is ", "42.")
    cut: dict[str, Any] = field(default_factory=lambda: dict(CUT))
    delay_s: float = 0.0
    asked: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Double":
        double = self

        class Handler(_Handler):
            owner = double

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for path, body, _ in self.asked if path.endswith("completions")]


class _Handler(BaseHTTPRequestHandler):
    owner: Double
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.owner.asked.append((self.path, {}, self.headers["Authorization"]))
        if self.path == "/v1/models":
            model = {"id": "demo", "object": "model", "max_model_len": 8192, "tilewise": self.owner.cut}
            self._reply(200, {"object": "list", "data": [model]})
        else:
            self._reply(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.owner.asked.append((self.path, body, self.headers["Authorization"]))
        if self.path == "/tokenize":
            ids = list(body["prompt"].encode())
            self._reply(200, {"tokens": ids, "count": len(ids), "max_model_len": 8192})
        elif self.path == "/detokenize":
            self._reply(200, {"prompt": bytes(body["tokens"]).decode()})
        else:
            self._answer(body)

    def _answer(self, body: dict[str, Any]) -> None:
        said = self.owner.script(body)
        if isinstance(said, Refusal) and not said.before:
            self._reply(said.status, _envelope(said))
        elif not body.get("stream"):
            message = {"role": "assistant", "content": "".join(said)}
            choice = {"index": 0, "message": message, "text": "".join(said), "finish_reason": "stop"}
            self._reply(200, {"choices": [choice], "usage": USAGE})
        else:
            self._stream(said)

    def _stream(self, said: Sequence[str] | Refusal) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for piece in said.before if isinstance(said, Refusal) else said:
                self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
                time.sleep(self.owner.delay_s)
            if isinstance(said, Refusal):
                self._event(_envelope(said))
                return
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self._event({"choices": [], "usage": USAGE})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.owner.left.set()
        self.close_connection = True

    def _event(self, chunk: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _envelope(refusal: Refusal) -> dict[str, Any]:
    return {"error": {"message": refusal.message, "type": "invalid_request_error", "code": refusal.code, "param": None}}
