"""A server of the embedded model as users start it, and clients that say how they are served."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

MODEL_NAME = "benchmark"
PATIENCE_S = 120.0
ANSWER_TOKENS = 3500  # half a minute's


@dataclass(frozen=True, slots=True)
class Server:
    """A process that answers on a port of this machine."""

    pid: int
    port: int

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def resident_mib(self) -> float:
        """Memory of the HTTP process, without the engine's."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024


@contextmanager
def start_server(*flags: str, keys: tuple[str, ...] = ()) -> Iterator[Server]:
    """A server that is ready."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-P", "-m", "tilewise", "serve", "api_server", "--server-port", str(port)]
    command += ["--model-name", MODEL_NAME, "--log-level", "ERROR", *flags]
    environment = {**os.environ, "TILEWISE_API_KEYS": ",".join(keys)}
    with subprocess.Popen(command, env=environment) as process:
        try:
            _wait_until_ready(process, port)
            yield Server(process.pid, port)
        finally:
            process.terminate()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1).close()
            return
        time.sleep(0.1)
    raise SystemExit("the server did not start")


class Chat:
    """One streamed answer, token by token: probabilities are asked for, so that each has an event."""

    def __init__(self, server: Server, content: object, max_tokens: int, key: str = "", **fields: Any) -> None:
        """Ask; the answer is not waited for.

        Raises:
            OSError: the server refused it, or ended the connection.
        """
        body = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "stream": True,
            "logprobs": True,
            **fields,
        }
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self.began_at = time.perf_counter()
        self._connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)

    def read(self) -> list[float]:
        """The moments at which its tokens came.

        Raises:
            OSError: the server refused it, or ended the connection.
        """
        return list(self.follow())

    def follow(self) -> Iterator[float]:
        """The moment of each token as it comes; ends the connection.

        Raises:
            OSError: the server refused it, or ended the connection.
        """
        try:
            response = self._connection.getresponse()
            if response.status != 200:
                raise OSError(f"{response.status}: {response.read(300)!r}")
            for line in response:
                if line.startswith(b"data: {") and b'"logprobs":{' in line:
                    yield time.perf_counter()
        except HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            self.leave()

    def leave(self) -> None:
        """Hang up."""
        self._connection.close()


class Bystander:
    """Reads a very long answer, and then another, and keeps the moments of their tokens."""

    def __init__(self, server: Server, **fields: Any) -> None:
        """Begin."""
        self._server, self._fields = server, fields
        self._moments: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read_on, daemon=True)
        self._thread.start()

    def _read_on(self) -> None:
        number = 0
        while not self._ended.is_set():
            number += 1
            question = f"Tell me a long story, number {number}."
            chat = Chat(self._server, question, ANSWER_TOKENS, ignore_eos=True, **self._fields)
            for moment in chat.follow():
                self._moments.append(moment)
                if self._ended.is_set():
                    return

    def longest_gap_ms(self, since: float, until: float) -> float:
        """The longest time in a span without a token."""
        moments = [moment for moment in self._moments if since <= moment <= until]
        edges = [since, *moments, until]
        return 1e3 * max(later - earlier for earlier, later in itertools.pairwise(edges))

    def stop(self) -> None:
        """Read no more."""
        self._ended.set()
        self._thread.join()


def picture_part(url: str, **options: Any) -> Mapping[str, Any]:
    """A picture of a message."""
    return {"type": "image_url", "image_url": {"url": url, **options}}
