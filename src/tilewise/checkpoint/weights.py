"""Streams a checkpoint's safetensors shards into the places that the model offers.

Owns the way from `shards` to the device; knows nothing of layers: the model hands in one `Slot` a tensor.
Every name and shape is compared before the first byte of data is read, and every tensor is used exactly once.
The model never exists twice: the CPU reads through a mapped file, and on the way to a GPU at most
`_READERS` * 2 staging buffers of the host and `in_flight_bytes` (or one larger tensor) of the device are in use.
"""

import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import torch
from safetensors import safe_open

from tilewise.checkpoint.shards import INDEX_NAME, StoredTensor, find_shards, read_header
from tilewise.errors import CheckpointError

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_MAX_SHOWN = 10
_READERS = 8
_STAGING_BYTES = 16 << 20
IN_FLIGHT_BYTES = 1 << 30


class Slot(Protocol):
    """The place of one checkpoint tensor, as a model offers it. It is called once, from the loading thread."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The checkpoint tensor's shape."""
        ...

    @property
    def load(self) -> Callable[[torch.Tensor], None]:
        """Put a tensor's rank's part, cast, into the parameter.

        On the CPU the tensor is a view of the mapped file that must be copied from and not kept; on a GPU it is
        a device tensor.
        """
        ...


Slots = Mapping[str, Slot]


def _some(items: list[str]) -> str:
    shown = ", ".join(f"{item:.160}" for item in items[:_MAX_SHOWN])
    return f"{shown}, …" if len(items) > _MAX_SHOWN else shown


def _check_fit(
    tensors: list[StoredTensor], index: Mapping[str, str] | None, slots: Slots, ignored: Callable[[str], bool]
) -> list[StoredTensor]:
    """Return the tensors to load, in file order, or raise one error that lists all that does not fit."""
    found: dict[str, StoredTensor] = {}
    twice: list[str] = []
    for tensor in tensors:
        other = found.setdefault(tensor.name, tensor)
        if other is not tensor:
            twice.append(f"{tensor.name} in {other.path.name} and {tensor.path.name}")
    where = {name: tensor.path.name for name, tensor in found.items()}
    misplaced = [] if index is None else sorted({name for name, _ in where.items() ^ index.items()})
    wrong = [
        f"{name} is {list(found[name].shape)} and should be {list(slot.shape)}"
        for name, slot in slots.items()
        if name in found and found[name].shape != tuple(slot.shape)
    ]
    problems = {
        "missing": [name for name in slots if name not in found],
        "left over": [name for name in found if name not in slots and not ignored(name)],
        "of the wrong shape": wrong,
        "stored twice": twice,
        f"not in the shard that {INDEX_NAME} says": misplaced,
    }
    listed = [f"{len(items)} {what} ({_some(items)})" for what, items in problems.items() if items]
    if listed:
        raise CheckpointError(f"The weights do not fit config.json: {'; '.join(listed)}.")
    return [tensor for tensor in tensors if tensor.name in slots]


def _stream_to_cpu(tensors: list[StoredTensor], slots: Slots) -> None:
    for path, group in groupby(tensors, key=lambda tensor: tensor.path):
        with safe_open(path, framework="pt") as shard:
            for tensor in group:
                slots[tensor.name].load(shard.get_tensor(tensor.name))


def read_exactly(descriptor: int, buffer: memoryview, offset: int, name: str) -> None:
    """Fill `buffer` from `offset` on; a read may be short on a network file system or past 2 GiB."""
    while buffer:
        count = os.preadv(descriptor, [buffer], offset)
        if not count:
            raise CheckpointError(f"{name} became shorter while it was read; download it again.")
        buffer, offset = buffer[count:], offset + count


class _Staging:
    """One reader's stream and two pinned buffers: one is filled from the file while the other is copied."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._buffers = [torch.empty(_STAGING_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]

    def copy(self, tensor: StoredTensor, target: torch.Tensor, is_free: torch.cuda.Event) -> None:
        """Fill `target`, whose memory may be written once `is_free` has passed; returns when it is filled."""
        data = target.view(-1).view(torch.uint8)
        with tensor.path.open("rb", buffering=0) as file, torch.cuda.stream(self._stream):
            self._stream.wait_event(is_free)
            for number, offset in enumerate(range(0, tensor.num_bytes, _STAGING_BYTES)):
                buffer, copied = self._buffers[number % 2], self._copied[number % 2]
                copied.synchronize()
                size = min(_STAGING_BYTES, tensor.num_bytes - offset)
                read_exactly(file.fileno(), buffer.numpy().data[:size], tensor.start + offset, tensor.path.name)
                data[offset : offset + size].copy_(buffer[:size], non_blocking=True)
                copied.record(self._stream)
            self._stream.synchronize()


def _stream_to_cuda(tensors: list[StoredTensor], slots: Slots, device: torch.device, max_in_flight_bytes: int) -> None:
    """Overlap reading, copying and `Slot.load`; tensors reach their slots in file order.

    NOTE: targets are allocated and freed on this thread's stream alone, so a block that the allocator hands
    out again may still be read by an earlier `load` queued there: hence the event before each allocation's use.
    """
    stagings: SimpleQueue[_Staging] = SimpleQueue()
    for _ in range(_READERS):
        stagings.put(_Staging(device))

    def read(tensor: StoredTensor, target: torch.Tensor, is_free: torch.cuda.Event) -> torch.Tensor:
        staging = stagings.get()
        try:
            staging.copy(tensor, target, is_free)
        finally:
            stagings.put(staging)
        return target

    def submit(pool: ThreadPoolExecutor, tensor: StoredTensor) -> Future[torch.Tensor]:
        target = torch.empty(tensor.shape, dtype=_DTYPES[tensor.dtype_name], device=device)
        is_free = torch.cuda.Event()
        is_free.record(torch.cuda.current_stream(device))
        return pool.submit(read, tensor, target, is_free)

    pending: deque[tuple[StoredTensor, Future[torch.Tensor]]] = deque()

    def finish_oldest() -> int:
        tensor, reading = pending.popleft()
        slots[tensor.name].load(reading.result())
        return tensor.num_bytes

    in_flight_bytes = 0
    with ThreadPoolExecutor(_READERS, thread_name_prefix="weights") as pool:
        for tensor in tensors:
            while pending and in_flight_bytes + tensor.num_bytes > max_in_flight_bytes:
                in_flight_bytes -= finish_oldest()
            pending.append((tensor, submit(pool, tensor)))
            in_flight_bytes += tensor.num_bytes
        while pending:
            finish_oldest()
    torch.cuda.empty_cache()


@torch.no_grad()
def load_weights(
    folder: Path,
    slots: Slots,
    device: torch.device,
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    in_flight_bytes: int = IN_FLIGHT_BYTES,
) -> None:
    """Put every tensor of the checkpoint in its slot, exactly once, in file order.

    Reads the shards that model.safetensors.index.json lists, else model.safetensors, else every .safetensors
    file. Tensors without a slot must be `ignored`, and are then not read. On the way to a GPU tensors of at most
    `in_flight_bytes` together, or one larger one, are under way.

    Raises:
        CheckpointError: files, headers, names or shapes do not fit; nothing has been loaded then. A file that
            changes while it is read raises later.
    """
    shards, index = find_shards(folder)
    tensors = _check_fit([tensor for path in shards for tensor in read_header(path)], index, slots, ignored)
    if device.type == "cuda":
        _stream_to_cuda(tensors, slots, device, in_flight_bytes)
    else:
        _stream_to_cpu(tensors, slots)
