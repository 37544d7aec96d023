"""Counts the kernels that a decode step and the tower launch, a layer at a time and by name, for the family's shapes.

    python benchmarks/launches.py [--decoders qwen2-0.5b,qwen3-8b] [--towers 300m] [--rows 1,64] [--device cuda]

Without a GPU the model is built of fake tensors on a GPU that is pretended, and nothing is computed: Triton's launches
are recorded where they would be made, and torch's operations one kernel each, which some of them are not. With
`--device cuda` the same step is captured in full depth, with random weights, and timed too. Prints a table for people
and one JSON line.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from serving_parts.machine import describe_machine
from shapes import DECODERS, TOWERS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tilewise.cache.tensors import CacheTensors, create_caches
from tilewise.config import DeviceConfig, EngineConfig, ModelConfig, ResolvedConfig, resolve
from tilewise.kernels import AttentionBatch
from tilewise.model.internvl import InternVL
from tilewise.runner.batch import StepBatch
from tilewise.runner.forward import compute_logits

BLOCK_SIZE = 64
CONTEXT_BLOCKS = 30  # of a request with one picture
HOPPER = {"major": 9, "minor": 0, "multi_processor_count": 132}
NO_KERNEL = {"device", "empty", "empty_like", "empty_strided", "new_empty", "detach", "_unsafe_view", "lift_fresh"}
NUM_REPLAYS = 20

Call = Callable[..., Any]


class Launches:
    """What a block of code would launch: kernel's name -> how often, and how many start in another's end."""

    def __init__(self) -> None:
        """Start with none."""
        self.counts: Counter[str] = Counter()
        self.num_dependent = 0

    @contextmanager
    def record(self) -> Iterator[None]:
        """Count everything that the block launches; no Triton kernel runs."""
        from triton.runtime.jit import JITFunction

        def launch(kernel: Any, *_: object, **options: object) -> None:
            self.counts[kernel.fn.__name__] += 1
            self.num_dependent += bool(options.get("launch_pdl"))

        with patch.object(JITFunction, "run", launch), _Functions(self.counts), _Operations(self.counts):
            yield


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NO_KERNEL:
            self._counts[f"torch {name}"] += 1
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    """What torch cannot do without a GPU even for fake tensors: choose an attention, and read an index."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        if func is F.scaled_dot_product_attention:
            self._counts["torch attention"] += 1
            batch, heads, length, head_dim = args[0].shape
            return args[0].new_empty(batch, length, heads, head_dim).transpose(1, 2)  # as it lies in memory
        if func is Tensor.__getitem__:
            return take(*args)
        return func(*args, **(kwargs or {}))


def take(tensor: Tensor, index: object) -> Tensor:
    """Index by slices, numbers, tensors, None and an ellipsis, one axis after the other."""
    parts = index if isinstance(index, tuple) else (index,)
    axis = 0
    for place, part in enumerate(parts):
        if part is Ellipsis:
            axis = tensor.dim() - (len(parts) - place - 1)
            continue
        if part is None:
            tensor = tensor.unsqueeze(axis)
        elif isinstance(part, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, axis, part.start, part.stop)
        elif isinstance(part, int):
            tensor = torch.ops.aten.select.int(tensor, axis, part)
            continue
        else:
            tensor = torch.ops.aten.index.Tensor(tensor, [None] * axis + [part])
        axis += 1
    return tensor


@contextmanager
def pretend_hopper() -> Iterator[None]:
    """Let torch say that it has an H200; nothing can be computed on it."""
    with (
        patch.object(torch.version, "cuda", "13.0"),
        patch.object(torch.cuda, "current_device", lambda: 0),
        patch.object(torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
        patch.object(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**HOPPER)),
        FakeTensorMode(),
    ):
        yield


def configure(decoder: str, tower: str, num_layers: int | None) -> ResolvedConfig:
    """A model of these parts in bf16; `num_layers` of each, or as many as they have."""
    language, vision = DECODERS[decoder], TOWERS[tower]
    if num_layers is not None:
        language, vision = replace(language, num_layers=num_layers), replace(vision, num_layers=num_layers)
    options = EngineConfig(session_len=2 * CONTEXT_BLOCKS * BLOCK_SIZE, use_cuda_graphs=False)
    return resolve(options, ModelConfig("InternVLChatModel", vision, language), DeviceConfig("cuda", 0, (9, 0)))


def build_step(config: ResolvedConfig, rows: int, is_random: bool = False) -> Callable[[], Tensor]:
    """A decode step of so many rows, as it is captured; weights and caches are what memory held or random."""
    device = torch.device("cuda")
    with device:
        model = InternVL(config)
        caches: CacheTensors = create_caches(config, rows * CONTEXT_BLOCKS, 1, model.dtype, device)
        lengths = torch.full((rows,), CONTEXT_BLOCKS * BLOCK_SIZE, dtype=torch.int32)
        table = torch.arange(rows * CONTEXT_BLOCKS, dtype=torch.int32).view(rows, CONTEXT_BLOCKS)
        places, ids = lengths.long() - 1, torch.zeros(rows, dtype=torch.int64)
        slots = (torch.arange(rows) + 1) * CONTEXT_BLOCKS * BLOCK_SIZE - 1
    batch = StepBatch(ids, ids - 1, ids - 1, ids, AttentionBatch(places, slots, rows, table, lengths))
    if is_random:
        model.randomize()
        caches.k.normal_()
        caches.v.normal_()
    return lambda: compute_logits(model, caches, batch, ids).argmax(dim=-1)


def build_tower(config: ResolvedConfig) -> Callable[[], Tensor]:
    """The tower and projector over one tile."""
    with torch.device("cuda"):
        model = InternVL(config)
        pixels = torch.zeros(1, 3, config.model.vision.image_size, config.model.vision.image_size, dtype=model.dtype)
    return lambda: model.encode_tiles(pixels)


def count(build: Callable[[ResolvedConfig], Callable[[], Tensor]], decoder: str, tower: str) -> dict[str, Any]:
    """Launches of one layer, which is what two layers have beyond one, and of everything around the layers."""
    found: list[Launches] = []
    for num_layers in (1, 2):
        with pretend_hopper(), torch.inference_mode():
            run, launches = build(configure(decoder, tower, num_layers)), Launches()
            for record in (Launches(), launches):  # what is made once is there the second time
                with record.record():
                    run()
        found.append(launches)
    one, two = found
    layer = two.counts - one.counts
    return {
        "layer": dict(layer),
        "a_layer": layer.total(),
        "dependent_a_layer": two.num_dependent - one.num_dependent,
        "around": dict(one.counts - layer),
    }


@torch.inference_mode()
def measure_us(config: ResolvedConfig, rows: int) -> float:
    """Microseconds of a captured step in full depth."""
    run = build_step(config, rows, is_random=True)
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times: list[float] = []
    for _ in range(NUM_REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return sorted(times)[NUM_REPLAYS // 2]


def show(name: str, rows: int, found: dict[str, Any], num_layers: int) -> None:
    """A line of the table."""
    num_around = sum(found["around"].values())
    total = found["a_layer"] * num_layers + num_around
    time = f"{found['step_us']:9.0f} us, {found['step_us'] / total:4.1f} each" if "step_us" in found else ""
    kinds = ", ".join(f"{kind} x{number}" if number > 1 else kind for kind, number in found["layer"].items())
    print(f"{name:>16} {rows:>4} {found['a_layer']:>7} {num_around:>7} {total:>6} {time:>24}  {kinds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoders", default=",".join(DECODERS))
    parser.add_argument("--towers", default=",".join(TOWERS))
    parser.add_argument("--rows", default="1,64")
    parser.add_argument("--device", choices=("none", "cuda"), default="none")
    options = parser.parse_args()
    decoders, towers = (known.split(",") if known else [] for known in (options.decoders, options.towers))
    steps = [(name, rows) for name in decoders for rows in map(int, options.rows.split(","))]
    times_us: dict[tuple[str, int], float] = {}
    if options.device == "cuda":  # before anything is pretended
        for name, rows in steps:
            times_us[name, rows] = measure_us(configure(name, "300m", None), rows)
            torch.cuda.empty_cache()
    results: list[dict[str, Any]] = []
    print(f"{'shape':>16} {'rows':>4} {'a layer':>7} {'around':>7} {'all':>6}")
    for name, rows in steps:
        found = count(lambda config, rows=rows: build_step(config, rows), name, "300m")
        found |= {"step_us": times_us[name, rows]} if times_us else {}
        show(name, rows, found, DECODERS[name].num_layers)
        results.append({"shape": name, "rows": rows, **found})
    for name in towers:
        found = count(build_tower, "qwen2-0.5b", name)
        show(name, 1, found, TOWERS[name].num_layers)
        results.append({"shape": name, "rows": 1, **found})
    machine = describe_machine("cuda" if options.device == "cuda" else "cpu")
    print(json.dumps({"benchmark": "launches", "results": results, **machine}))


if __name__ == "__main__":
    main()
