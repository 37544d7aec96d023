"""Times `load_weights` from a folder of safetensors to a device; run it twice, the second time from the page cache.

python benchmarks/load_weights.py FOLDER [DEVICE]

On the CPU the growth of anonymous memory includes the parameters themselves.
"""

import json
import re
import sys
import time
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from tilewise.checkpoint.weights import load_weights
from tilewise.layers.slot import Slot


def read_anonymous_mib() -> int:
    return int(re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[0]) >> 10


def main() -> None:
    folder, device = Path(sys.argv[1]), torch.device(sys.argv[2] if len(sys.argv) > 2 else "cuda:0")
    slots: dict[str, Slot] = {}
    anonymous_mib: list[int] = []

    def put(parameter: torch.Tensor, tensor: torch.Tensor) -> None:
        parameter.copy_(tensor)
        anonymous_mib.append(read_anonymous_mib())

    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (no mapping)
                shape = tuple(shard.get_slice(name).get_shape())
                slots[name] = Slot(shape, partial(put, torch.empty(shape, dtype=torch.bfloat16, device=device)))
    before_mib = read_anonymous_mib()
    start_s = time.perf_counter()
    load_weights(folder, slots, device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start_s
    gib = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**30
    result = {
        "tensors": len(slots),
        "gib": round(gib, 2),
        "seconds": round(seconds, 2),
        "gib_per_s": round(gib / seconds, 2),
        "host_anonymous_growth_mib": max(anonymous_mib) - before_mib,
        "device_peak_mib": torch.cuda.max_memory_allocated(device) >> 20 if device.type == "cuda" else 0,
    }
    for name, value in result.items():
        print(f"{name:28}{value:>12}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
