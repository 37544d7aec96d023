"""Row 36: how long an innocent picture waits beside clients that send pictures which are slow to decode.

The innocent one is a PNG of 640x480 pixels, asked for ten times a second.
"""

import io
import statistics
import struct
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from PIL import Image

from chaos_parts.row import Row
from tilewise.errors import TilewiseError
from tilewise.inputs.media.sources import load_image

MOST_MS = 500.0
NUM_CLIENTS, PHASE_S, INTERVAL_S = 4, 4.0, 0.1


def encode(image: Image.Image, format_name: str, **options: object) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def draw_innocent() -> bytes:
    """A PNG of 640x480 pixels, smooth with a little noise."""
    noise = np.random.default_rng(0).integers(0, 8, (480, 640, 3), dtype=np.uint8)
    ramp = np.linspace(0, 240, 640, dtype=np.uint8)[None, :, None]
    return encode(Image.fromarray(ramp + noise), "PNG")


def build_gif(num_bytes: int = 15 << 20) -> bytes:
    """A comment in blocks of 255 bytes, each of which makes Pillow copy the comment once more."""
    whole = encode(Image.new("P", (8, 8)), "GIF")
    start = whole.index(b",")
    block = b"\xff" + b"x" * 255
    return whole[:start] + b"!\xfe" + block * (num_bytes // 255) + b"\0" + whole[start:]


def build_bmp(num_runs: int = 9_000_000) -> bytes:
    """Runs of one pixel, each of which costs lines of Python."""
    body = b"\1\1" * num_runs + b"\0\1"
    start = 14 + 40 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, 7000, 7000, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + bytes(1024) + body


def build_jpeg(num_scans: int = 500) -> bytes:
    """A progressive JPEG that goes over its 49 million pixels again and again, in 0.2 MB."""
    whole = encode(Image.new("L", (7000, 7000), 77), "JPEG", progressive=True, quality=50)
    last_scan = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last_scan * num_scans + whole[-2:]


def build_png(num_chunks: int = 15_000) -> bytes:
    """Colour profiles, each of which unpacks to a megabyte."""
    body = b"k\0\0" + zlib.compress(bytes((1 << 20) - 1))
    chunk = struct.pack(">I", len(body)) + b"iCCP" + body + struct.pack(">I", zlib.crc32(b"iCCP" + body))
    whole = encode(Image.new("RGB", (8, 8)), "PNG")
    return whole[:33] + chunk * num_chunks + whole[33:]


KINDS: dict[str, Callable[[], bytes]] = {
    "GIF, 15 MB comment": build_gif,
    "BMP, 9 million runs": build_bmp,
    "JPEG, 500 scans of 49 MP": build_jpeg,
    "PNG, 15 GB of profiles": build_png,
}


def measure_kind(name: str, hostile: bytes) -> list[Row]:
    """Let so many clients send `hostile` without a pause, and ask for an innocent picture at regular times."""
    innocent = draw_innocent()
    with suppress(TilewiseError):
        load_image(innocent)
    is_over = threading.Event()
    waits: list[float] = []
    num_refused = 0

    def send_hostile() -> None:
        while not is_over.is_set():
            with suppress(TilewiseError):
                load_image(hostile)

    clients = [threading.Thread(target=send_hostile) for _ in range(NUM_CLIENTS)]
    for client in clients:
        client.start()
    ends_at = time.perf_counter() + PHASE_S
    while (started_at := time.perf_counter()) < ends_at:
        try:
            load_image(innocent)
        except TilewiseError:
            num_refused += 1
        waits.append(time.perf_counter() - started_at)
        time.sleep(max(0.0, INTERVAL_S - waits[-1]))
    is_over.set()
    for client in clients:
        client.join()
    return [
        Row(36, f"a small picture beside {name}: p50", 1e3 * statistics.median(waits), "ms"),
        Row(36, f"a small picture beside {name}: longest", 1e3 * max(waits), "ms", most=MOST_MS),
        Row(36, f"a small picture beside {name}: refused", num_refused, "", most=0),
    ]


def measure() -> list[Row]:
    """Rows for each kind of hostile picture."""
    return [row for name, build in KINDS.items() for row in measure_kind(name, build())]
