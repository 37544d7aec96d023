"""The safetensors files of a checkpoint: which there are, and what their headers list. No torch, and no data.

Every header is bounded and compared with its file's size before anything is made of it.
"""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tilewise.checkpoint.json_file import load_json
from tilewise.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
# A 26B's header takes 100 kB; safetensors itself would parse 100 MB.
_MAX_HEADER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a shard; its data is the half-open byte range [start, start + num_bytes) of the file."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype_name: str
    start: int
    num_bytes: int


def find_shards(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Return the files to read, and the index (tensor name -> file name) where there is one."""
    if (folder / INDEX_NAME).exists():
        weight_map = load_json(folder / INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{INDEX_NAME}: weight_map must be an object of tensor names and file names.")
        for name in weight_map.values():
            is_plain = isinstance(name, str) and name.endswith(".safetensors") and not set(name) & {"/", "\\", "\0"}
            if not is_plain:
                text = f"{INDEX_NAME}: {name!r:.120} is not the plain name of a .safetensors file in the same folder."
                raise CheckpointError(text)
        return [folder / name for name in sorted(set(weight_map.values()))], weight_map
    if (folder / SINGLE_NAME).exists():
        return [folder / SINGLE_NAME], None
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        remedy = "download it again, or use load_format='dummy' for random weights."
        if any(any(folder.glob(pattern)) for pattern in ("*.bin", "*.pt", "*.pth")):
            remedy = "its pickled weights (.bin, .pt) are never opened; convert them to safetensors."
        raise CheckpointError(f"The model folder holds no .safetensors file: {remedy}")
    return shards, None


def read_header(path: Path) -> list[StoredTensor]:
    """List a shard's tensors in file order.

    The safetensors library refuses headers whose ranges do not cover the data exactly and in order, so starts
    are running sums; header length and file size are checked here first to bound what it parses.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing from the model folder, or is no file; download it again.")
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            file_bytes = os.fstat(file.fileno()).st_size
        if header_bytes > min(_MAX_HEADER_BYTES, file_bytes - 8):
            raise CheckpointError(
                f"{path.name} is truncated or no safetensors file: {file_bytes} bytes with a header of {header_bytes} "
                f"(at most {_MAX_HEADER_BYTES}); download it again."
            )
        tensors: list[StoredTensor] = []
        start = 8 + header_bytes
        with safe_open(path, framework="np") as shard:
            for name in shard.offset_keys():
                view = shard.get_slice(name)
                shape, dtype_name = tuple(view.get_shape()), view.get_dtype()
                if dtype_name not in _DTYPE_BYTES:
                    allowed = ", ".join(_DTYPE_BYTES)
                    raise CheckpointError(f"{path.name}: {name:.120} is {dtype_name}; supported are {allowed}.")
                num_bytes = prod(shape) * _DTYPE_BYTES[dtype_name]
                tensors.append(StoredTensor(name, path, shape, dtype_name, start, num_bytes))
                start += num_bytes
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} is damaged ({error!s:.200}); download it again.") from None
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error!s}.") from error
    if start != file_bytes:
        raise CheckpointError(f"{path.name} is damaged: {file_bytes} bytes, {start} expected; download it again.")
    return tensors


def list_tensor_names(folder: Path) -> frozenset[str]:
    """Name every tensor of the checkpoint; none where the folder holds no weights, as for a plan.

    Raises:
        CheckpointError: index or headers cannot be read.
    """
    if not (folder / INDEX_NAME).exists() and not any(folder.glob("*.safetensors")):
        return frozenset()
    paths, index = find_shards(folder)
    if index is not None:
        return frozenset(index)
    return frozenset(tensor.name for path in paths for tensor in read_header(path))
