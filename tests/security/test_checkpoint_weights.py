import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import tilewise
from tests.messages import mentions
from tests.processes import run_command
from tilewise.checkpoint.weights import load_weights
from tilewise.errors import CheckpointError
from tilewise.layers.slot import Slot

CPU = torch.device("cpu")


def entry(start: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def shard(header: object, data: bytes = b"\0" * 8, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


BROKEN = {
    "empty": b"",
    "shorter than a length": b"\x08\0\0",
    "truncated header": shard({"a": entry(0, 8)}, b"")[:-10],
    "header longer than the file": shard({"a": entry(0, 8)}, length=1000),
    "header of 2^62": shard({"a": entry(0, 8)}, length=1 << 62),
    "header of 2^64-1": shard({"a": entry(0, 8)}, length=(1 << 64) - 1),
    "header of 90 MiB of blanks": shard(b'{"a":' + b" " * (90 << 20) + b"}"),
    "truncated data": shard({"a": entry(0, 8)}, b"\0" * 4),
    "data left over": shard({"a": entry(0, 8)}, b"\0" * 12),
    "beyond the file": shard({"a": entry(1 << 40, (1 << 40) + 8)}),
    "end before start": shard({"a": entry(8, 0)}),
    "overlapping": shard({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12),
    "gap": shard({"a": entry(0, 8), "b": entry(12, 20)}, b"\0" * 20),
    "unknown dtype": shard({"a": entry(0, 8, dtype="F31")}),
    "integer dtype": shard({"a": entry(0, 8, (1,), "I64")}),
    "eight-bit dtype": shard({"a": entry(0, 8, (8,), "F8_E4M3")}),
    "size that the shape contradicts": shard({"a": entry(0, 8, (3,))}),
    "negative shape": shard({"a": entry(0, 8, (-2,))}),
    "shape that overflows": shard({"a": entry(0, 8, (1 << 62, 1 << 62))}),
    "not UTF-8": shard(b'{"\xff\xfe": {}}'),
    "not JSON": shard(b"not JSON at all"),
    "not an object": shard([1, 2, 3]),
    "too deep": shard(b"[" * 100_000),
    "a zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_shard_is_one_short_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as refusal:
        load_weights(tmp_path, {"a": Slot((2,), pytest.fail)}, CPU)
    assert len(str(refusal.value)) < 500


def test_the_broken_corpus_leaves_memory_flat(tmp_path: Path) -> None:
    for number, content in enumerate(BROKEN.values()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "model.safetensors").write_bytes(content)
    code = """
import resource, sys
from pathlib import Path
import torch
from tilewise.checkpoint.weights import load_weights
from tilewise.errors import CheckpointError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for folder in Path(sys.argv[1]).iterdir():
    try:
        load_weights(folder, {}, torch.device("cpu"))
    except CheckpointError:
        refused += 1
print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(tilewise.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = run_command(command, env=environment, check=True)
    refused, growth_kib = map(int, done.stdout.split())
    assert refused == len(BROKEN)
    assert growth_kib < 32 << 10


def test_a_shard_that_is_no_regular_file_is_refused_without_reading(tmp_path: Path) -> None:
    for number, target in enumerate(("/dev/zero", str(tmp_path), str(tmp_path / "nowhere"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "part.safetensors").symlink_to(target)
        with pytest.raises(CheckpointError, match=r"part\.safetensors"):
            load_weights(folder, {}, CPU)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "x\0.safetensors",
        "x.bin",
        "",
        3,
    ],
)
def test_an_index_may_only_name_plain_safetensors_files(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "x.safetensors").write_bytes(save({"a": torch.zeros(2)}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=mentions("model.safetensors.index.json", repr(name))):
        load_weights(folder, {"a": Slot((2,), pytest.fail)}, CPU)


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"weight_map": []}', b'{"weight_map": {}}', b"\xff", b'{"weight_'])
def test_a_malformed_index_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        load_weights(tmp_path, {}, CPU)


GOOD = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(position=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7), cut=st.integers(0, len(GOOD)))
def test_flipped_bits_and_cuts_are_loaded_in_shape_or_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int, cut: int
) -> None:
    content = bytearray(GOOD)
    content[position] ^= 1 << bit
    folder = tmp_path_factory.getbasetemp()
    (folder / "model.safetensors").write_bytes(content[:cut] if cut % 2 else content)
    shapes: list[tuple[int, ...]] = []
    slots = {name: Slot(shape, lambda t: shapes.append(tuple(t.shape))) for name, shape in (("a", (2, 3)), ("b", (4,)))}
    try:
        load_weights(folder, slots, CPU)
    except CheckpointError:
        assert shapes == []
    else:
        assert sorted(shapes) == [(2, 3), (4,)]
