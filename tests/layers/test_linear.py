"""Linear layers split over ranks: all shares together are the layer of one rank."""

import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.messages import mentions
from tests.oracle.twins import pack_groups
from tests.processes import run_command
from tilewise.layers.linear import ColumnLinear, RowLinear
from tilewise.parallel import Group

WIDTH = 24
HEADS = (12, 4, 8)  # query heads, KV heads, head size
ROWS = {"q": 96, "k": 32, "v": 32}
SIZES = [1, 2, 4]


class Apart(Group):
    """Ranks of a group in one process: partial sums stay with their rank, and the test adds them."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return x


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def load(layer: ColumnLinear | RowLinear, parameter: str, tensor: Tensor, piece: str | None = None) -> None:
    slot = layer.slot(parameter, piece)
    assert slot.shape == tuple(tensor.shape)
    slot.load(tensor)


def join_pieces(outputs: list[Tensor], layers: list[ColumnLinear]) -> Tensor:
    """Ranks' outputs (T, shares of every piece) to the unsplit layer's order of rows."""
    parts = [out.split(list(layer.shares.values()), dim=-1) for out, layer in zip(outputs, layers, strict=True)]
    return torch.cat([torch.cat(piece, dim=-1) for piece in zip(*parts, strict=True)], dim=-1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_fused", [False, True], ids=["piece by piece", "all pieces in one tensor"])
def test_columns_of_all_ranks_are_the_unsplit_outputs(size: int, is_fused: bool) -> None:
    pieces = {"gate": 40, "up": 16}
    weight, bias, x = random(56, WIDTH), random(56, seed=1), random(5, WIDTH, seed=2)
    layers = [
        ColumnLinear(WIDTH, pieces, dtype=torch.float32, bias=True, group=Group(rank, size)) for rank in range(size)
    ]
    for layer in layers:
        for parameter, tensor in (("weight", weight), ("bias", bias)):
            if is_fused:
                load(layer, parameter, tensor)
            else:
                for name, part in zip(pieces, tensor.split(list(pieces.values())), strict=True):
                    load(layer, parameter, part, name)
    joined = join_pieces([layer(x) for layer in layers], layers)
    torch.testing.assert_close(joined, F.linear(x, weight, bias))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["pieces", "fused", "grouped"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_heads_of_all_ranks_are_the_unsplit_heads_however_they_were_packed(
    size: int, form: str, has_bias: bool
) -> None:
    weights = {name: random(rows, WIDTH, seed=rows + number) for number, (name, rows) in enumerate(ROWS.items())}
    biases = {name: weight[:, 0] for name, weight in weights.items()}
    x = random(5, WIDTH, seed=9)
    layers = [
        ColumnLinear(WIDTH, ROWS, dtype=torch.float32, bias=has_bias, num_groups=HEADS[1], group=Group(rank, size))
        for rank in range(size)
    ]
    for layer in layers:
        for parameter, parts in (("weight", weights), ("bias", biases))[: 1 + has_bias]:
            if form == "grouped":
                load(layer, parameter, pack_groups(*parts.values(), num_groups=HEADS[1]), "grouped")
            elif form == "fused":
                load(layer, parameter, torch.cat(list(parts.values())))
            else:
                for name, part in parts.items():
                    load(layer, parameter, part, name)
    expected = torch.cat([F.linear(x, weights[name], biases[name] if has_bias else None) for name in ROWS], dim=-1)
    torch.testing.assert_close(join_pieces([layer(x) for layer in layers], layers), expected)


@pytest.mark.parametrize("size", SIZES)
def test_rank_r_keeps_the_query_heads_of_its_own_kv_heads(size: int) -> None:
    num_heads, num_kv_heads, head_dim = HEADS
    q, k, v = (
        torch.arange(heads).repeat_interleave(head_dim).float() for heads in (num_heads, num_kv_heads, num_kv_heads)
    )
    for rank in range(size):
        layer = ColumnLinear(1, ROWS, dtype=torch.float32, num_groups=num_kv_heads, group=Group(rank, size))
        load(layer, "weight", pack_groups(q[:, None], k[:, None], v[:, None], num_groups=num_kv_heads), "grouped")
        kept_q, kept_k, kept_v = layer(torch.ones(1, 1))[0].split(list(layer.shares.values()))
        group = num_heads // num_kv_heads
        assert set(kept_q.int().div(group, rounding_mode="floor").tolist()) == set(kept_k.int().tolist())
        assert torch.equal(kept_k, kept_v)
        assert len(set(kept_k.tolist())) == num_kv_heads // size


@pytest.mark.parametrize("size", SIZES)
def test_partial_sums_of_all_ranks_are_the_unsplit_outputs_with_the_bias_once(size: int) -> None:
    weight, bias, x = random(10, WIDTH), random(10, seed=1) + 3, random(5, WIDTH, seed=2)
    total = torch.zeros(5, 10)
    for rank, part in enumerate(x.chunk(size, dim=-1)):
        layer = RowLinear(WIDTH, 10, dtype=torch.float32, bias=True, group=Apart(rank, size))
        load(layer, "weight", weight)
        load(layer, "bias", bias)
        total += layer(part)
    torch.testing.assert_close(total, F.linear(x, weight, bias))


@pytest.mark.parametrize(
    ("create", "size"),
    [
        (lambda group: ColumnLinear(WIDTH, {"up": 10}, dtype=torch.float32, group=group), 10),
        (lambda group: RowLinear(WIDTH + 2, 8, dtype=torch.float32, group=group), WIDTH + 2),
    ],
    ids=["column", "row"],
)
def test_a_size_that_the_ranks_do_not_divide_is_refused(create, size: int) -> None:
    with pytest.raises(ValueError, match=mentions(size, "4 ranks")):
        create(Group(0, 4))


RANK = """
    import sys
    import torch
    from tilewise.layers.linear import RowLinear
    from tilewise.parallel import Group

    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    layer = RowLinear(8, 3, dtype=torch.float32, bias=True, group=Group(rank, 2))
    layer.slot("weight").load(torch.arange(24.0).view(3, 8))
    layer.slot("bias").load(torch.tensor([100.0, 200.0, 300.0]))
    print(layer(torch.full((1, 4), 1.0 + rank)).tolist())
    torch.distributed.destroy_process_group()
"""


def test_two_processes_meet_in_the_all_reduce(repository: Path, tmp_path: Path) -> None:
    script = textwrap.dedent(RANK)
    environment = {"PYTHONPATH": str(repository / "src"), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", script, str(rank), str(tmp_path / "store")] for rank in range(2)]
    with ThreadPoolExecutor() as both:
        ranks = [both.submit(run_command, command, env=environment, check=True) for command in commands]
    expected = [[100.0 + 50, 200.0 + 146, 300.0 + 242]]  # rows of 0..23 against (1, 1, 1, 1, 2, 2, 2, 2)
    for rank in ranks:
        assert rank.result().stdout.strip() == str(expected)


class Eighths:
    """A toy method: whole eighths in int8, and a record of what the layer asked of it."""

    def __init__(self) -> None:
        self.created: list[tuple[int, int]] = []
        self.loaded: list[tuple[tuple[int, ...], int]] = []
        self.num_applied = 0

    def create(self, layer: nn.Module, rows: int, columns: int, dtype: torch.dtype) -> None:
        self.created.append((rows, columns))
        layer.register_buffer("eighths", torch.zeros(rows, columns, dtype=torch.int8))

    def load(self, layer: nn.Module, part: Tensor, first_row: int) -> None:
        self.loaded.append((tuple(part.shape), first_row))
        layer.eighths[first_row : first_row + len(part)] = (part * 8).round().to(torch.int8)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        self.num_applied += 1
        return F.linear(x, layer.eighths.to(x.dtype) / 8, bias)

    def apply_gated(self, layer: nn.Module, x: Tensor) -> Tensor:
        gate, up = self.apply(layer, x, None).chunk(2, dim=-1)
        return F.silu(gate) * up


def test_a_quantisation_method_creates_loads_and_applies_the_weight_of_a_column_layer() -> None:
    method = Eighths()
    layer = ColumnLinear(WIDTH, {"gate": 12, "up": 8}, dtype=torch.float32, bias=True, group=Group(1, 2), method=method)
    weights = {"gate": random(12, WIDTH), "up": random(8, WIDTH, seed=1)}
    for name, weight in weights.items():
        load(layer, "weight", weight, name)
        load(layer, "bias", torch.zeros(len(weight)), name)
    x = random(5, WIDTH, seed=2)
    rounded = torch.cat([(weight[len(weight) // 2 :] * 8).round() / 8 for weight in weights.values()])
    torch.testing.assert_close(layer(x), F.linear(x, rounded))
    assert method.created == [(10, WIDTH)]
    assert method.loaded == [((6, WIDTH), 0), ((4, WIDTH), 6)]
    assert method.num_applied == 1
    assert not hasattr(layer, "weight")


def test_a_quantisation_method_may_have_its_own_way_with_gate_and_up() -> None:
    method = Eighths()
    layer = ColumnLinear(WIDTH, {"gate": 6, "up": 6}, dtype=torch.float32, method=method)
    gate, up, x = random(6, WIDTH), random(6, WIDTH, seed=1), random(5, WIDTH, seed=2)
    load(layer, "weight", gate, "gate")
    load(layer, "weight", up, "up")
    rounded_gate, rounded_up = (F.linear(x, (weight * 8).round() / 8) for weight in (gate, up))
    torch.testing.assert_close(layer.forward_gated(x), F.silu(rounded_gate) * rounded_up)


def test_a_quantisation_method_holds_a_row_layer_too() -> None:
    method = Eighths()
    layer = RowLinear(WIDTH, 10, dtype=torch.float32, group=Apart(1, 2), method=method)
    weight, x = random(10, WIDTH), random(5, WIDTH // 2, seed=2)
    load(layer, "weight", weight)
    torch.testing.assert_close(layer(x), F.linear(x, (weight[:, WIDTH // 2 :] * 8).round() / 8))
    assert (method.created, method.loaded) == ([(10, WIDTH // 2)], [((10, WIDTH // 2), 0)])
