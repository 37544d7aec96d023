"""The composed model: names, slots, sizes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.oracle.twins import FLAVOURS, TILE_SIZE, create_twin, official_config, official_tensors, write_checkpoint
from tilewise.checkpoint.hf_config import SERVED, load_model_config
from tilewise.config import DeviceConfig, EngineConfig, LayoutName, resolve
from tilewise.model.families import FAMILIES
from tilewise.model.internvl import InternVL
from tilewise.plan import count_weights


def build_model(twin, folder: Path) -> InternVL:
    (folder / "config.json").write_text(json.dumps(official_config(twin)))
    return InternVL(resolve(EngineConfig(), load_model_config(folder), DeviceConfig("cpu")))


@pytest.mark.parametrize(("architecture", "language_model"), SERVED)
def test_every_language_model_that_is_read_has_a_family(architecture: str, language_model: str, tmp_path: Path) -> None:
    twin = create_twin(text=None if language_model.startswith("InternLM2") else {"model_type": "qwen2"})
    layout = "official" if architecture == "InternVLChatModel" else "hf_flat"
    write_checkpoint(twin, tmp_path, layout)
    facts = json.loads((tmp_path / "config.json").read_text())
    assert facts["architectures"] == [architecture]
    facts["llm_config" if layout == "official" else "text_config"]["architectures"] = [language_model]
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert load_model_config(tmp_path).decoder.family in FAMILIES


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("select_layer", [-1, -3])
def test_slots_and_unused_tensors_are_together_the_official_checkpoint(
    flavour: str, select_layer: int, tmp_path: Path
) -> None:
    twin = create_twin(flavour, select_layer=select_layer)
    model, tensors = build_model(twin, tmp_path), official_tensors(twin)
    unused = {name for name in tensors if model.is_unused(name)}
    assert set(model.slots()) == set(tensors) - unused
    assert {name.split(".")[3] for name in unused} == ({"1", "2"} if select_layer == -3 else set())
    for name, slot in model.slots().items():
        assert slot.shape == tuple(tensors[name].shape), name


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_slots_fill_every_parameter_and_spare_the_heads_padding(flavour: str, tmp_path: Path) -> None:
    twin = create_twin(flavour, has_decoder_bias=True)
    model, tensors = build_model(twin, tmp_path), official_tensors(twin)
    head = model.decoder.head
    for parameter in model.parameters():
        parameter.fill_(math.nan)
    for name, slot in model.slots().items():
        slot.load(tensors[name])
    assert head.weight[head.vocab_size :].isnan().all()
    head.weight[head.vocab_size :] = 0
    assert [name for name, parameter in model.named_parameters() if parameter.isnan().any()] == []


@pytest.mark.parametrize(
    "name", ["vision_model.encoder.layers.3.ls1", "vision_model.encoder.layers.x.ls1", "mlp1.0.weight"]
)
def test_a_stray_name_is_not_taken_for_an_unused_layer(name: str, tmp_path: Path) -> None:
    assert not build_model(create_twin(select_layer=-2), tmp_path).is_unused(name)


@pytest.mark.parametrize("prefix", ["language_model.model.layers.0.self_attn", "language_model.model"])
def test_frequencies_that_older_savers_wrote_are_unused_and_other_names_like_theirs_are_not(
    prefix: str, tmp_path: Path
) -> None:
    model = build_model(create_twin(), tmp_path)
    assert model.is_unused(f"{prefix}.rotary_emb.inv_freq")
    assert not model.is_unused(f"{prefix}.inv_freq")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_planned_number_of_weights_is_what_is_allocated(flavour: str, tmp_path: Path) -> None:
    model = build_model(create_twin(flavour, has_decoder_bias=True, select_layer=-2), tmp_path)
    padding = len(model.decoder.head.weight) - model.decoder.head.vocab_size
    allocated = sum(parameter.numel() for parameter in model.parameters())
    assert allocated - padding * model.decoder.config.hidden_size == count_weights(model.config).total


@pytest.mark.parametrize("text", [{"model_type": "qwen2"}, {"model_type": "qwen3", "head_dim": 48}], ids=str)
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("layout", ["official", "hf_flat", "hf_nested"])
def test_every_layout_fills_every_parameter_and_is_counted_exactly(
    text: dict[str, Any], is_tied: bool, layout: LayoutName, tmp_path: Path
) -> None:
    twin = create_twin("300m", text={**text, "tie_word_embeddings": is_tied})
    write_checkpoint(twin, tmp_path, layout)
    tensors = load_file(tmp_path / "model.safetensors")
    model = InternVL(resolve(EngineConfig(), load_model_config(tmp_path), DeviceConfig("cpu")))
    for parameter in model.parameters():
        parameter.fill_(math.nan)
    slots = model.slots()
    assert slots.keys() == tensors.keys()
    for name, slot in slots.items():
        assert slot.shape == tuple(tensors[name].shape), name
        slot.load(tensors[name])
    head = model.decoder.head
    head.weight[head.vocab_size :] = 0
    assert [name for name, parameter in model.named_parameters() if parameter.isnan().any()] == []
    padding = (len(head.weight) - head.vocab_size) * model.decoder.config.hidden_size
    allocated = sum(parameter.numel() for parameter in model.parameters())
    assert allocated - padding == count_weights(model.config).total == sum(t.numel() for t in tensors.values())


def test_random_norms_of_heads_are_one_and_biases_zero(tmp_path: Path) -> None:
    for text in ({"model_type": "qwen2"}, {"model_type": "qwen3", "head_dim": 48, "tie_word_embeddings": True}):
        model = build_model(create_twin(text=text), tmp_path)
        model.randomize()
        attention = model.decoder.layers[0].get_submodule("attention")
        for name, parameter in attention.named_parameters():
            if parameter.dim() == 1:
                assert parameter.eq(1.0 if "norm" in name else 0.0).all(), name


@torch.no_grad()
def test_a_tile_is_encoded_the_same_in_any_company(tmp_path: Path) -> None:
    model = build_model(create_twin(), tmp_path)
    model.randomize()
    pixels = torch.randn(3, 3, TILE_SIZE, TILE_SIZE, generator=torch.Generator().manual_seed(0))
    encoded = model.encode_tiles(pixels)
    assert encoded.shape == (3, model.config.tokens_per_tile, model.config.decoder.hidden_size)
    for number in range(3):
        torch.testing.assert_close(encoded[number], model.encode_tiles(pixels[number : number + 1])[0])


def test_random_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    twin = create_twin()
    first, again, other = (build_model(twin, tmp_path) for _ in range(3))
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        for parameter in model.parameters():
            parameter.fill_(math.nan)
        model.randomize(seed)
    for name, parameter in first.named_parameters():
        assert parameter.isfinite().all(), name
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert not torch.equal(first.decoder.embedding.weight, other.decoder.embedding.weight)
