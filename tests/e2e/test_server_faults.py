"""A server under load, left by its clients, told to end, or without its engine."""

import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.clients.running import MODEL, RunningServer, run_server, start_server
from tests.clients.test_openai_sdk import DATA_URL
from tests.processes import PATIENCE_S

LONG: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "ignore_eos": True}


@pytest.fixture(scope="module")
def small_server() -> Iterator[RunningServer]:
    """One answer runs, one waits, and no more."""
    with run_server("--max-batch-size", "1", "--max-queued", "1", "--session-len", "4096") as running:
        yield running


def send_raw(server: RunningServer, body: dict[str, Any]) -> socket.socket:
    """A request whose answer nobody has read yet."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    connection.sendall(f"{head}{len(data)}\r\n\r\n".encode() + data)
    return connection


def wait_until_open(server: RunningServer, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while server.num_open != count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("more", [{"stream": True}, {"stream": False}, {"stream": True, "n": 2}, {"n": 2}])
def test_a_client_that_leaves_takes_its_answers_with_it(small_server: RunningServer, more: dict[str, Any]) -> None:
    connection = send_raw(small_server, {**LONG, **more})
    wait_until_open(small_server, more.get("n", 1))
    connection.close()
    small_server.wait_until_idle()


def test_a_client_that_leaves_while_its_picture_is_fetched_starts_nothing() -> None:
    with (
        run_server("--allowed-media-hosts", "127.0.0.1") as server,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/never.png"
        content = [{"type": "image_url", "image_url": {"url": url}}] * 3
        clients, fetches = list[socket.socket](), list[socket.socket]()
        for _ in range(2):
            clients.append(send_raw(server, {**LONG, "messages": [{"role": "user", "content": content}]}))
            fetches.append(silent.accept()[0])
            assert fetches[-1].recv(65536).startswith(b"GET ")
        clients[1].close()
        # Of two fetches that run into the same time limit, the later one ends first: nobody wants it any more.
        assert select.select(fetches, [], [])[0] == fetches[1:]
        assert fetches[1].recv(1) == b""
        for connection in (clients[0], *fetches):
            connection.close()
        server.wait_until_idle()
        assert server.metric("vllm:generation_tokens_total") == 0


def test_a_full_queue_is_a_rate_limit_error_that_says_when_to_return(small_server: RunningServer) -> None:
    connections = [send_raw(small_server, {**LONG, "stream": True}) for _ in range(2)]
    wait_until_open(small_server, 2)
    with openai.OpenAI(base_url=f"{small_server.url}/v1", api_key="-", max_retries=0) as client:
        started = time.perf_counter()
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": DATA_URL}])
        print(f"refused in {(time.perf_counter() - started) * 1000:.1f} ms")
        assert int(caught.value.response.headers["Retry-After"]) > 0
        assert caught.value.code == "queue_full"
        assert client.models.list().data
    for connection in connections:
        connection.close()
    small_server.wait_until_idle()


def test_more_choices_than_ever_fit_are_a_bad_request(small_server: RunningServer) -> None:
    with small_server.http() as http:
        response = http.post("/v1/chat/completions", json={**LONG, "n": 3})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")


def read_events(response: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]


def test_sigterm_lets_running_streams_finish_and_ends_with_zero() -> None:
    events: list[list[str]] = []
    with run_server("--session-len", "4096") as server:

        def stream() -> None:
            with (
                server.http() as http,
                http.stream(
                    "POST", "/v1/chat/completions", json={**LONG, "stream": True, "max_tokens": 150}
                ) as response,
            ):
                events.append(read_events(response))

        threads = [threading.Thread(target=stream) for _ in range(10)]
        for thread in threads:
            thread.start()
        wait_until_open(server, 10)
        engine_pid = server.engine_pid
        with server.http() as http:
            assert http.get("/ready").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("shutting down")
            refused = http.get("/ready")
            late = http.post("/v1/chat/completions", json=LONG)
        assert refused.status_code == late.status_code == 503
        assert late.headers["Retry-After"]
        for thread in threads:
            thread.join()
        assert server.stop() == 0
        assert not Path(f"/proc/{engine_pid}").exists()
    assert [stream[-1] for stream in events] == ["[DONE]"] * 10


def test_a_body_on_its_way_when_the_server_ends_is_waited_for_and_told_to_come_back() -> None:
    data = json.dumps(LONG).encode()
    with run_server() as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(data)}\r\nExpect: 100-continue\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 100 "), "its body is awaited"
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("shutting down")
            for _ in range(20):  # longer than it takes to end where nothing runs
                with server.http() as http:
                    assert http.get("/ready").status_code == 503
                time.sleep(0.1)
            connection.sendall(data)
            with connection.makefile("rb") as answer:
                told = answer.read().lower()
        assert told.startswith(b"http/1.1 503 ")
        assert b"retry-after: " in told
        assert server.stop() == 0


def test_without_its_engine_it_fails_what_runs_and_ends_with_status_one() -> None:
    with run_server() as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        failed: list[Exception] = []

        def ask(stream: bool) -> None:
            try:
                answer: Any = client.chat.completions.create(
                    model=MODEL, messages=LONG["messages"], stream=stream, extra_body={"ignore_eos": True}
                )
                list(answer)
            except openai.APIError as error:
                failed.append(error)

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
        for thread in threads:
            thread.start()
        wait_until_open(server, 2)
        os.kill(server.engine_pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        kinds = sorted(type(error).__name__ for error in failed)
        assert kinds == ["APIError", "InternalServerError"]
        assert server.process.wait(PATIENCE_S) == 1
    assert server.lines[-1]["message"].startswith("tilewise: The engine's process ended")


def test_a_stopped_engine_is_unhealthy_and_what_it_holds_still_ends_once_it_goes_on() -> None:
    with run_server() as server:
        os.kill(server.engine_pid, signal.SIGSTOP)
        try:
            deadline = time.monotonic() + PATIENCE_S
            with server.http() as http:
                while http.get("/health").status_code == 200:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
        finally:
            os.kill(server.engine_pid, signal.SIGCONT)
        with server.http() as http:
            assert http.post("/v1/chat/completions", json={**LONG, "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize("keys", [(), ("a-key",)])
def test_beyond_loopback_without_a_key_it_warns_loudly(keys: tuple[str, ...]) -> None:
    with start_server("--server-name", "0.0.0.0", keys=keys) as server:
        server.wait_for_address()
        server.stop()
    assert any(line["message"].startswith("NO API KEY") for line in server.lines) is not bool(keys)


def test_while_it_loads_it_lives_but_is_not_ready() -> None:
    with start_server("--log-level", "INFO") as server:
        server.wait_for_address()
        engine_pid = None
        while engine_pid is None:
            assert server.process.poll() is None
            with contextlib.suppress(ValueError):
                engine_pid = server.engine_pid
        os.kill(engine_pid, signal.SIGSTOP)  # it loads for as long as the questions take
        with server.http() as http:
            assert http.get("/health").status_code == 200
            assert http.get("/ready").status_code == 503
            refused = http.post("/v1/chat/completions", json=LONG)
            assert refused.status_code == 503
            assert "loading" in refused.json()["error"]["message"]
        os.kill(engine_pid, signal.SIGCONT)
        assert server.stop() == 0


def test_a_model_that_cannot_be_loaded_ends_the_server_with_one_line() -> None:
    with start_server("--kv-cache-bytes", "4096", "--session-len", "8192") as server:
        assert server.process.wait(PATIENCE_S) == 2
        with pytest.raises(AssertionError, match="ended before"):
            server.wait_for("ready")
    assert server.lines[-1]["message"].startswith("tilewise: ")
