"""What HTTP adds: the same pictures, as JPEG, asked of a pipeline and of a server in turn.

One GPU does not hold two engines, so each is closed before the other starts. The client's work, encoding pictures and
bodies, is done before the clock runs; decoding them is the server's and counts.
"""

import base64
import http.client
import json
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from server import MODEL_NAME, start_server

from serving_parts.doors import Door, PipelineDoor, check_lengths, measure_mixed, measure_seed, prepare_mixed
from serving_parts.work import QUESTION, Pictures, Work, encode_jpeg
from tilewise import Pipeline

_MIB = 1 << 20
_TIMEOUT_S = 600.0


class ServerDoor:
    """A server on this machine; each request has a connection of its own."""

    def __init__(self, port: int) -> None:
        """Connect to nothing yet."""
        self._port = port

    def prepare(self, picture: Image.Image, num_tokens: int) -> tuple[bytes, int]:
        """A request's body, and how many tokens are to come back."""
        url = "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(picture)).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        body = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        return json.dumps(body).encode(), num_tokens

    def ask(self, requests: Sequence[tuple[bytes, int]]) -> None:
        """All at once, on as many threads."""
        with ThreadPoolExecutor(len(requests)) as pool:
            counted = list(pool.map(self._post, [body for body, _ in requests]))
        check_lengths(counted, [num_tokens for _, num_tokens in requests])

    def _post(self, body: bytes) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        try:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"The server answered {response.status}: {answer[:500].decode(errors='replace')}")
        return json.loads(answer)["usage"]["completion_tokens"]


def measure_http(
    pipe: Pipeline,
    open_pipeline: Callable[[], Pipeline],
    server_arguments: list[str],
    work: Work,
    open_pictures: Callable[[int], Pictures],
    parts: Sequence[str],
) -> dict[str, float]:
    """Measure seed and mixed batch on both sides in turn; closes `pipe`, which is the first round's.

    `open_pictures` takes a round's number, and gives both its sides the same.
    """
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    left_mib = 0
    for number in range(work.http_rounds):
        pipe = open_pipeline() if number else pipe
        with pipe:
            offline = _measure(PipelineDoor(pipe, uses_jpeg=True), work, open_pictures(number), parts)
        left_mib = max(left_mib, _read_reserved_mib(pipe))
        try:
            process, port = start_server(server_arguments)
        except SystemExit as error:  # must not take the other parts' figures along
            raise RuntimeError(str(error)) from None
        try:
            rounds.append((offline, _measure(ServerDoor(port), work, open_pictures(number), parts)))
        finally:
            process.terminate()
            process.wait()
    figures: dict[str, float] = {}
    for side, name in enumerate(("offline", "server")):
        for key in rounds[0][side]:
            figures[f"{name}_{key}"] = statistics.median(both[side][key] for both in rounds)
    if "seed" in parts:
        added = [server["first_token_ms"] - offline["first_token_ms"] for offline, server in rounds]
        figures["added_first_token_ms"] = statistics.median(added)
    if "mixed" in parts:
        shares = [server["requests_per_s"] / offline["requests_per_s"] for offline, server in rounds]
        figures["rate_percent"] = 100 * statistics.median(shares)
    return figures | ({"left_after_close_mib": left_mib} if pipe.engine.resolved.device.type == "cuda" else {})


def _measure(door: Door, work: Work, pictures: Pictures, parts: Sequence[str]) -> dict[str, float]:
    figures: dict[str, float] = {}
    if "seed" in parts:
        figures |= measure_seed(door, work, pictures)
    if "mixed" in parts:
        figures |= measure_mixed(door, work, prepare_mixed(door, work, pictures))
    return figures


def _read_reserved_mib(pipe: Pipeline) -> int:
    """What torch still holds of the GPU for a closed pipeline."""
    device = pipe.engine.resolved.device
    if device.type == "cpu":
        return 0
    import torch

    return torch.cuda.memory_reserved(device.name) // _MIB
