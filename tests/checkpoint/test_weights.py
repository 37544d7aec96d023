import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.messages import mentions
from tilewise.checkpoint.weights import load_weights, read_exactly
from tilewise.errors import CheckpointError
from tilewise.layers.slot import Slot

CPU = torch.device("cpu")


class Sink:
    """Slots for `tensors`, and what arrived in them, in order."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.arrived: list[tuple[str, torch.Tensor]] = []
        self.slots = {name: Slot(tuple(tensor.shape), self._loader(name)) for name, tensor in tensors.items()}

    def _loader(self, name: str):
        return lambda tensor: self.arrived.append((name, tensor.clone()))


def make_tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.randn(number + 1, 4) for number, name in enumerate(names)}


def write_sharded(folder: Path, shards: dict[str, dict[str, torch.Tensor]]) -> dict[str, str]:
    """Write shards and an honest index; return the index's weight_map."""
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_arrived_once(sink: Sink, tensors: dict[str, torch.Tensor]) -> None:
    assert sorted(name for name, _ in sink.arrived) == sorted(tensors)
    for name, tensor in sink.arrived:
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor.cpu(), tensors[name])


def test_every_tensor_of_every_shard_reaches_its_slot_exactly_once(tmp_path: Path) -> None:
    first, second = make_tensors("a", "b", "c"), make_tensors("d", "e")
    write_sharded(tmp_path, {"model-1.safetensors": first, "model-2.safetensors": second})
    save_file(make_tensors("stray"), tmp_path / "adapter.safetensors")
    sink = Sink(first | second)
    load_weights(tmp_path, sink.slots, CPU)
    assert_arrived_once(sink, first | second)


def test_a_single_file_needs_no_index_and_hides_other_files(tmp_path: Path) -> None:
    tensors = make_tensors("a", "b")
    save_file(tensors, tmp_path / "model.safetensors")
    save_file(make_tensors("stray"), tmp_path / "adapter.safetensors")
    sink = Sink(tensors)
    load_weights(tmp_path, sink.slots, CPU)
    assert_arrived_once(sink, tensors)


def test_plain_shards_without_an_index_are_all_read(tmp_path: Path) -> None:
    first, second = make_tensors("a"), make_tensors("b")
    save_file(first, tmp_path / "part-one.safetensors")
    save_file(second, tmp_path / "part-two.safetensors")
    sink = Sink(first | second)
    load_weights(tmp_path, sink.slots, CPU)
    assert_arrived_once(sink, first | second)


def test_shards_may_be_symbolic_links_as_in_a_hub_cache(tmp_path: Path) -> None:
    tensors, blobs, snapshot = make_tensors("a"), tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    save_file(tensors, blobs / "0f3a")
    (snapshot / "model.safetensors").symlink_to(blobs / "0f3a")
    sink = Sink(tensors)
    load_weights(snapshot, sink.slots, CPU)
    assert_arrived_once(sink, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_supported_dtypes_scalars_and_empty_tensors_keep_their_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"matrix": torch.randn(3, 5).to(dtype), "scalar": torch.tensor(1.5, dtype=dtype)}
    tensors["empty"] = torch.empty(0, 4, dtype=dtype)
    save_file(tensors, tmp_path / "model.safetensors")
    sink = Sink(tensors)
    load_weights(tmp_path, sink.slots, CPU)
    assert_arrived_once(sink, tensors)


def test_ignored_tensors_need_no_slot(tmp_path: Path) -> None:
    tensors = make_tensors("a", "rotary.inv_freq")
    save_file(tensors, tmp_path / "model.safetensors")
    sink = Sink({"a": tensors["a"]})
    load_weights(tmp_path, sink.slots, CPU, ignored=lambda name: name.endswith(".inv_freq"))
    assert [name for name, _ in sink.arrived] == ["a"]


def test_all_misfits_are_listed_at_once_before_anything_is_loaded(tmp_path: Path) -> None:
    stored = {f"extra{number}": torch.zeros(1) for number in range(12)}
    stored |= {"good": torch.zeros(2), "bent": torch.zeros(2, 3)}
    save_file(stored, tmp_path / "model.safetensors")
    sink = Sink({"good": torch.zeros(2), "bent": torch.zeros(3, 2), "absent": torch.zeros(1)})
    with pytest.raises(CheckpointError) as refusal:
        load_weights(tmp_path, sink.slots, CPU)
    message = str(refusal.value)
    assert re.search(mentions(1, "missing", "absent", 12, "bent", "[2, 3]", "[3, 2]"), message)
    assert len(re.findall(r"\bextra\d+", message)) == 10
    assert sink.arrived == []


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    save_file(make_tensors("a", "b"), tmp_path / "one.safetensors")
    save_file(make_tensors("a"), tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=mentions("twice", "a", "one.safetensors", "two.safetensors")):
        load_weights(tmp_path, Sink(make_tensors("a", "b")).slots, CPU)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    first, second = make_tensors("a"), make_tensors("b", "c")
    honest = write_sharded(tmp_path, {"model-1.safetensors": first, "model-2.safetensors": second})
    slots = Sink(first | second).slots
    for lie, culprit in (
        (honest | {"b": "model-1.safetensors"}, "b"),
        (honest | {"ghost": "model-1.safetensors"}, "ghost"),
        ({name: file for name, file in honest.items() if name != "c"}, "c"),
    ):
        write_index(tmp_path, lie)
        with pytest.raises(CheckpointError, match=mentions("1", "model.safetensors.index.json", culprit)):
            load_weights(tmp_path, slots, CPU)


def test_a_shard_that_the_index_names_and_the_folder_lacks_is_named(tmp_path: Path) -> None:
    tensors = make_tensors("a")
    write_index(tmp_path, write_sharded(tmp_path, {"model-1.safetensors": tensors}) | {"b": "model-2.safetensors"})
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is missing"):
        load_weights(tmp_path, Sink(tensors).slots, CPU)


def test_pickled_weights_are_never_opened_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(CheckpointError, match=mentions(".bin", "convert", "safetensors")):
        load_weights(tmp_path, {}, CPU)


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        load_weights(tmp_path, {}, CPU)


def test_an_error_of_a_slot_reaches_the_caller(tmp_path: Path) -> None:
    def fail(tensor: torch.Tensor) -> None:
        raise KeyError("from the slot")

    save_file(make_tensors("a"), tmp_path / "model.safetensors")
    with pytest.raises(KeyError, match="from the slot"):
        load_weights(tmp_path, {"a": Slot((1, 4), fail)}, CPU)


def test_loading_needs_no_gradient_bookkeeping_in_the_slots(tmp_path: Path) -> None:
    tensors = make_tensors("a")
    save_file(tensors, tmp_path / "model.safetensors")
    weight = torch.nn.Parameter(torch.zeros(1, 4))

    def load(tensor: torch.Tensor) -> None:
        weight.copy_(tensor)

    load_weights(tmp_path, {"a": Slot((1, 4), load)}, CPU)
    assert torch.equal(weight, tensors["a"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from Linux's /proc")
def test_the_cpu_reads_through_the_mapped_file_without_a_second_copy(tmp_path: Path) -> None:
    def anonymous_bytes() -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]

    tensors = {name: torch.zeros(48 << 20, dtype=torch.uint8).view(torch.bfloat16) for name in ("a", "b")}
    save_file(tensors, tmp_path / "model.safetensors")
    before, peaks = anonymous_bytes(), []

    def load(tensor: torch.Tensor) -> None:
        assert tensor.max() == 0
        peaks.append(anonymous_bytes())

    load_weights(tmp_path, {name: Slot(tuple(tensor.shape), load) for name, tensor in tensors.items()}, CPU)
    assert max(peaks) - before < 16 << 20


def test_a_file_that_shrinks_while_it_is_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"12345678")
    buffer = bytearray(6)
    with (tmp_path / "shard").open("rb") as file:
        read_exactly(file.fileno(), memoryview(buffer), 2, "shard")
        assert buffer == b"345678"
        with pytest.raises(CheckpointError, match=mentions("shard", "download")):
            read_exactly(file.fileno(), memoryview(buffer), 3, "shard")


@pytest.mark.gpu
@pytest.mark.parametrize("in_flight_bytes", [1, 64 << 20, 1 << 30])
def test_the_device_receives_the_same_bits_in_file_order(tmp_path: Path, in_flight_bytes: int) -> None:
    sizes = [1, 0, 3, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, (20 << 20) + 7, *range(1000, 1100)] * 2
    tensors = {f"t{number:03d}": torch.randn(size).bfloat16() for number, size in enumerate(sizes)}
    save_file(tensors, tmp_path / "model.safetensors")
    sink = Sink(tensors)
    load_weights(tmp_path, sink.slots, torch.device("cuda", 0), in_flight_bytes=in_flight_bytes)
    assert all(tensor.is_cuda for _, tensor in sink.arrived)
    assert_arrived_once(sink, tensors)


@pytest.mark.gpu
def test_a_slot_that_fails_on_the_device_ends_loading_with_its_error(tmp_path: Path) -> None:
    def fail(tensor: torch.Tensor) -> None:
        raise KeyError("from the slot")

    tensors = make_tensors(*(f"t{number}" for number in range(50)))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(KeyError, match="from the slot"):
        load_weights(tmp_path, {n: Slot(tuple(t.shape), fail) for n, t in tensors.items()}, torch.device("cuda", 0))
