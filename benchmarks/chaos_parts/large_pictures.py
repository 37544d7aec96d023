"""Row 35: what somebody reads beside pictures of 49 megapixels, and after sixteen of them that nobody waits for."""

import base64
import io
import time

from PIL import Image

from chaos_parts.row import Row
from chaos_parts.server import Bystander, Chat, Server, picture_part, start_server

NUM_PICTURES, NUM_CANCELLED = 3, 16
MOST_GROWTH_MS, MOST_HELD_MS = 200.0, 300.0
KINDS = {"640x480": ((640, 480), 1), "49 megapixels, 1 tile": ((7000, 7000), 1)}
TILED = {"640x480, 13 tiles": ((640, 480), 12), "49 megapixels, 10 tiles": ((7000, 7000), 12)}


def draw_url(size: tuple[int, int], number: int) -> str:
    """A picture of one colour, which costs its sender next to nothing; no two have the same colour."""
    colour = (8 * number % 256, number // 32 * 8 % 256, 77)  # steps that JPEG's rounding keeps apart
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def ask_about(server: Server, url: str, max_tiles: int) -> Chat:
    """A question about a picture."""
    text = {"type": "text", "text": "What is in it?"}
    return Chat(server, [picture_part(url, max_dynamic_patch=max_tiles), text], 2)


def measure() -> list[Row]:
    """Measure each kind of picture beside a reader, then those that are cancelled."""
    kinds = {**KINDS, **TILED}
    urls = {
        name: [draw_url(size, 100 * kind + number) for number in range(NUM_PICTURES)]
        for kind, (name, (size, _)) in enumerate(kinds.items())
    }
    cancelled = [draw_url((7000, 7000), 500 + number) for number in range(NUM_CANCELLED)]
    gaps: dict[str, float] = {}
    with start_server() as server:
        for size, max_tiles in kinds.values():
            ask_about(server, draw_url(size, 900), max_tiles).read()
        bystander = Bystander(server)
        try:
            time.sleep(2.0)
            for name, (_, max_tiles) in kinds.items():
                since = time.perf_counter()
                for url in urls[name]:
                    ask_about(server, url, max_tiles).read()
                gaps[name] = bystander.longest_gap_ms(since, time.perf_counter())
            held_ms = _measure_cancelled(server, bystander, cancelled)
        finally:
            bystander.stop()
    rows: list[Row] = []
    for small, large in (list(KINDS), list(TILED)):
        rows.append(Row(35, f"longest gap beside {small}", gaps[small], "ms"))
        rows.append(Row(35, f"longest gap beside {large}", gaps[large], "ms", most=gaps[small] + MOST_GROWTH_MS))
    rows.append(Row(35, f"longest gap after {NUM_CANCELLED} that are cancelled", held_ms, "ms", most=MOST_HELD_MS))
    return rows


def _measure_cancelled(server: Server, bystander: Bystander, urls: list[str]) -> float:
    chats = [ask_about(server, url, 1) for url in urls]
    time.sleep(1.0)
    since = time.perf_counter()
    for chat in chats:
        chat.leave()
    time.sleep(3.0)
    return bystander.longest_gap_ms(since, time.perf_counter())
