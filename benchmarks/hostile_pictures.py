"""How long an innocent picture waits beside clients that send pictures which are slow to decode, again and again.

    python benchmarks/hostile_pictures.py [--seconds 4] [--clients 4]

The innocent one is a PNG of 640x480 pixels, asked for ten times a second. Prints what was measured beside what is
asked, and one JSON line at the end; the status is 1 where an innocent one waited longer than that, or was refused.
"""

import argparse
import io
import json
import os
import platform
import statistics
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from tilewise.errors import TilewiseError
from tilewise.inputs.media.sources import load_image

ASKED_S = 0.5
INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one kind of hostile picture; seconds. `ends` counts what became of the hostile ones."""

    name: str
    p50_s: float
    max_s: float
    asked_s: float
    num_innocent: int
    num_refused: int
    ends: dict[str, int]

    @property
    def is_met(self) -> bool:
        """Whether no innocent picture waited longer than asked, or was refused."""
        return self.max_s <= self.asked_s and not self.num_refused


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


def measure_kind(name: str, hostile: bytes, *, num_clients: int, seconds: float) -> Row:
    """Let so many clients send `hostile` without a pause, and ask for an innocent picture at regular times."""
    innocent = draw_innocent()
    with suppress(TilewiseError):
        load_image(innocent)
    ends, is_over = Counter[str](), threading.Event()
    waits: list[float] = []
    num_refused = 0

    def send_hostile() -> None:
        while not is_over.is_set():
            try:
                load_image(hostile)
                ends["200"] += 1
            except TilewiseError as error:
                ends[f"{error.status} {error.code}"] += 1

    clients = [threading.Thread(target=send_hostile) for _ in range(num_clients)]
    for client in clients:
        client.start()
    ends_at = time.perf_counter() + seconds
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
    return Row(name, statistics.median(waits), max(waits), ASKED_S, len(waits), num_refused, dict(ends))


def measure_hostile_pictures(*, num_clients: int = 4, seconds: float = 4.0) -> list[Row]:
    """A row for each kind, measured for so many seconds each."""
    rows: list[Row] = []
    for name, build in KINDS.items():
        rows.append(measure_kind(name, build(), num_clients=num_clients, seconds=seconds))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each kind")
    parser.add_argument("--clients", type=int, default=4, help="how many send hostile pictures")
    arguments = parser.parse_args()
    rows = measure_hostile_pictures(num_clients=arguments.clients, seconds=arguments.seconds)
    print(f"{arguments.clients} clients send it; an innocent PNG of 640x480 meanwhile ({os.cpu_count()} cores):")
    for row in rows:
        verdict = "" if row.is_met else "  NOT MET"
        print(
            f"{row.name:26} p50 {1000 * row.p50_s:6.0f} ms   longest {1000 * row.max_s:6.0f} ms"
            f"   asked <= {1000 * row.asked_s:.0f} ms   {row.num_refused} of {row.num_innocent} refused"
            f"   hostile: {row.ends}{verdict}"
        )
    print(json.dumps({"machine": platform.processor() or platform.machine(), "rows": [asdict(row) for row in rows]}))
    return 0 if all(row.is_met for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
