"""Training state on disk, and a trained model in the official layout. Safetensors only, in shards below 16 MB.

A state holds all that the next step depends on, in fp32. A model folder holds the weights' running mean in bf16 and
where training stood: a sixth of the size, and training goes on from it with a fresh optimiser.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from training.network import create_model

from tilewise.checkpoint.weights import load_weights
from tilewise.inputs.text.tokenizer import load_tokenizer
from tilewise.model.internvl import InternVL

SHARD_BYTES = 15_500_000


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands: optimiser steps done, and batches drawn."""

    step: int = 0
    batch: int = 0


def split_into_shards(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Tensors in order, in groups of at most `SHARD_BYTES`."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    return shards


def save_state(folder: Path, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Replace `folder` as a whole: an interrupted save leaves the old one."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for number, shard in enumerate(split_into_shards(tensors)):
        (new / f"state-{number:02d}.safetensors").write_bytes(save(shard))
    (new / "state.json").write_text(json.dumps(asdict(progress)) + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def load_state(folder: Path) -> tuple[Progress, dict[str, Tensor]]:
    """What `save_state` wrote."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("state-*.safetensors")):
        tensors |= load_file(path)
    if not tensors:
        raise SystemExit(f"{folder} holds no state-*.safetensors; give the folder of a checkpoint.")
    return Progress(**json.loads((folder / "state.json").read_text("utf-8"))), tensors


def load_model(folder: Path, model: InternVL) -> Progress:
    """Load what `export` wrote."""
    load_weights(folder, model.slots(), torch.device("cpu"))
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    return Progress(**index["metadata"]["training"])


def to_official(model: InternVL) -> dict[str, Tensor]:
    """The model's tensors under their official names and in their official layout, fp32.

    The package only knows how to load a tensor. So a twin is loaded with tensors that hold running numbers; its
    parameters then say of each of their elements which official one it is.
    """
    with torch.device("cpu"):
        twin = create_model(model.config).requires_grad_(False)
    slots = twin.slots()
    sizes = [torch.Size(slot.shape).numel() for slot in slots.values()]
    assert sum(sizes) < 2**24, "fp32 counts no further"
    for parameter in twin.parameters():
        parameter.fill_(-1)
    numbers = torch.arange(sum(sizes), dtype=torch.float32)
    for slot, part in zip(slots.values(), numbers.split(sizes), strict=True):
        slot.load(part.view(slot.shape))
    flat = torch.full((sum(sizes),), torch.nan)
    for parameter, own in zip(twin.parameters(), model.parameters(), strict=True):
        is_real = parameter >= 0  # a head's padding is not
        flat[parameter[is_real].long()] = own.detach().float().cpu()[is_real]
    assert not flat.isnan().any()
    return {name: part.view(slot.shape) for (name, slot), part in zip(slots.items(), flat.split(sizes), strict=True)}


def export(
    folder: Path, model: InternVL, description: Mapping[str, object], tokenizer_folder: Path, progress: Progress
) -> None:
    """Write a model folder that the package serves: bf16 shards with an index, configuration, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    tensors = {name: tensor.bfloat16() for name, tensor in to_official(model).items()}
    shards = split_into_shards(tensors)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        (folder / name).write_bytes(save(shard, metadata={"format": "pt"}))
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size, "training": asdict(progress)}, "weight_map": places}
    tokenizer = load_tokenizer(tokenizer_folder)
    generation = {"bos_token_id": tokenizer.special_id("<s>"), "eos_token_id": [2, tokenizer.special_id("<|im_end|>")]}
    files = {"model.safetensors.index": index, "config": description, "generation_config": generation}
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n", "utf-8")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        if folder.resolve() != tokenizer_folder.resolve():
            shutil.copyfile(tokenizer_folder / name, folder / name)


def copy_into(parameters: Iterable[tuple[str, Tensor]], tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Load every parameter from the tensor of its name behind `prefix`."""
    with torch.no_grad():
        for name, parameter in parameters:
            parameter.copy_(tensors[prefix + name])
