"""The decoder split over ranks: threads stand for ranks and meet in a barrier."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.processes import PATIENCE_S
from tilewise.config import DecoderConfig
from tilewise.kernels import AttentionBatch, PrefillChunk
from tilewise.layers.rope import Rope
from tilewise.layers.slot import Layer, Slot
from tilewise.model.decoder import Decoder
from tilewise.parallel import SINGLE, Group

BIASED = DecoderConfig("internlm2", 64, 96, 2, 8, 4, 8, 300, 64, use_qkv_bias=True, use_output_bias=True)
QWEN2 = DecoderConfig("qwen2", 64, 96, 2, 20, 4, 8, 300, 64, use_qkv_bias=True, is_head_tied=True)
QWEN3 = DecoderConfig("qwen3", 64, 96, 2, 8, 4, 16, 300, 64, use_qk_norm=True)
LENGTH = 20


@dataclass(frozen=True)
class Meeting:
    barrier: threading.Barrier
    parts: dict[int, Tensor]


@dataclass(frozen=True)
class Threaded(Group):
    meeting: Meeting | None = None

    def all_reduce(self, x: Tensor) -> Tensor:
        assert self.meeting is not None
        self.meeting.parts[self.rank] = x
        self.meeting.barrier.wait(PATIENCE_S)
        total = sum((self.meeting.parts[rank] for rank in range(self.size)), start=torch.zeros_like(x))
        self.meeting.barrier.wait(PATIENCE_S)
        return total


def random_tensors(decoder: Decoder) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: slot.shape for name, slot in list_slots(decoder).items()}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def list_slots(decoder: Decoder) -> dict[str, Slot]:
    modules = [(name, decoder.get_submodule(path), piece) for name, path, piece in decoder.names()]
    return {
        f"{name}.{parameter}": module.slot(parameter, piece)
        for name, module, piece in modules
        for parameter in ("weight", "bias")
        if isinstance(module, Layer) and module.has(parameter)
    }


@torch.no_grad()
def run_rank(
    config: DecoderConfig, group: Group, x: Tensor, tensors: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    decoder = Decoder(config, Rope(config.head_dim, 64, 10000.0), torch.float32, group)
    tensors = tensors or random_tensors(decoder)
    for name, slot in list_slots(decoder).items():
        slot.load(tensors[name])
    cache = torch.full((2, config.num_layers, 2, 16, config.num_kv_heads // group.size, config.head_dim), torch.nan)
    positions = torch.arange(LENGTH)
    batch = AttentionBatch(
        positions=positions,
        slots=positions,
        num_decodes=0,
        block_table=torch.empty(0, 0, dtype=torch.int32),
        lengths=torch.empty(0, dtype=torch.int32),
        chunks=(PrefillChunk(0, 0, LENGTH),),
        chunk_table=torch.tensor([[0, 1]], dtype=torch.int32),
    )
    return decoder.logits(decoder(x, *cache, batch)), tensors


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("config", [BIASED, QWEN2, QWEN3], ids=lambda config: config.family)
def test_every_rank_computes_the_logits_of_one_rank(config: DecoderConfig, size: int) -> None:
    x = torch.randn(LENGTH, config.hidden_size, generator=torch.Generator().manual_seed(1))
    expected, tensors = run_rank(config, SINGLE, x)
    meeting = Meeting(threading.Barrier(size), {})
    with ThreadPoolExecutor(size) as pool:
        ranks = [pool.submit(run_rank, config, Threaded(rank, size, meeting), x, tensors) for rank in range(size)]
        for rank in ranks:
            torch.testing.assert_close(rank.result()[0], expected, rtol=1e-4, atol=1e-4)
