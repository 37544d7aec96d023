import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilewise
from tests.checkpoint import configs
from tests.processes import run_command
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import RopeScaling
from tilewise.errors import CheckpointError, UnsupportedModelError

OFFICIAL = Path(__file__).parents[1] / "data/internvl-chat-v1-5"

SMALL: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "vision_config": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 128},
    "llm_config": {
        "architectures": ["InternLM2ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
        "max_position_embeddings": 512,
    },
}


def write_config(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write SMALL with changes."""
    return configs.write_config(folder, SMALL, changes)


def test_official_config_reads_as_the_published_facts() -> None:
    model = load_model_config(OFFICIAL)
    vision, decoder = model.vision, model.decoder
    assert (vision.hidden_size, vision.num_layers, vision.num_heads, vision.head_dim) == (3200, 45, 25, 128)
    assert (vision.intermediate_size, vision.image_size, vision.patch_size) == (12800, 448, 14)
    assert (vision.norm_type, vision.norm_eps, vision.use_qk_norm, vision.use_qkv_bias) == (
        "rms_norm",
        1e-6,
        True,
        False,
    )
    assert (decoder.family, decoder.hidden_size, decoder.num_layers) == ("internlm2", 6144, 48)
    assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim) == (48, 8, 128)
    assert (decoder.vocab_size, decoder.max_position_embeddings, decoder.rope_theta) == (92553, 32768, 1e6)
    assert decoder.rope_scaling == RopeScaling("dynamic", 3.0)
    assert (decoder.use_qkv_bias, decoder.use_output_bias, model.is_random) == (False, False, False)
    assert (model.tokens_per_tile, model.projector_input_size, model.pixel_shuffle_version) == (256, 12800, "v2")
    assert (model.min_dynamic_patch, model.max_dynamic_patch, model.use_thumbnail) == (1, 12, True)
    assert (model.template, model.dtype, model.select_layer) == ("internlm2-chat", "bfloat16", -1)


def test_absent_keys_take_the_defaults_of_the_official_classes(tmp_path: Path) -> None:
    absent = {f"vision_config.{key}": ... for key in SMALL["vision_config"]}
    model = load_model_config(write_config(tmp_path, absent))
    vision, decoder = model.vision, model.decoder
    assert (vision.hidden_size, vision.num_layers, vision.num_heads) == (3200, 48, 25)
    assert (vision.intermediate_size, vision.image_size, vision.patch_size) == (12800, 224, 14)
    assert (vision.norm_type, vision.norm_eps, vision.use_qk_norm, vision.use_qkv_bias) == (
        "rms_norm",
        1e-6,
        True,
        False,
    )
    assert (decoder.num_kv_heads, decoder.norm_eps, decoder.rope_theta, decoder.rope_scaling) == (4, 1e-6, 1e4, None)
    assert decoder.use_qkv_bias
    assert decoder.use_output_bias
    assert (model.pixel_shuffle_version, model.downsample_ratio, model.select_layer) == ("v1", 0.5, -1)
    assert (model.max_dynamic_patch, model.use_thumbnail, model.template) == (1, False, None)


def test_the_300m_flavour_is_read_from_its_flags(tmp_path: Path) -> None:
    flags = {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True, "model_type": "intern_vit_300m"}
    vision = load_model_config(write_config(tmp_path, {f"vision_config.{k}": v for k, v in flags.items()})).vision
    assert (vision.norm_type, vision.use_qk_norm, vision.use_qkv_bias) == ("layer_norm", False, True)


def test_model_type_stands_in_for_absent_architectures(tmp_path: Path) -> None:
    changes = {"architectures": ..., "model_type": "internvl_chat"}
    changes |= {"llm_config.architectures": ..., "llm_config.model_type": "internlm2"}
    assert load_model_config(write_config(tmp_path, changes)).decoder.family == "internlm2"


def test_tiling_is_one_tile_unless_the_image_size_is_dynamic(tmp_path: Path) -> None:
    fixed = load_model_config(write_config(tmp_path, {"max_dynamic_patch": 12}))
    dynamic = load_model_config(write_config(tmp_path, {"max_dynamic_patch": 12, "dynamic_image_size": True}))
    assert (fixed.max_dynamic_patch, dynamic.max_dynamic_patch) == (1, 12)


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "float32"}, "float32"),
        ({"llm_config.torch_dtype": "float16"}, "float16"),
        ({"torch_dtype": "bfloat16", "llm_config.torch_dtype": "float16"}, "bfloat16"),
        ({}, "bfloat16"),
    ],
)
def test_dtype_comes_from_the_top_level_before_the_language_model(
    tmp_path: Path, changes: dict[str, Any], dtype: str
) -> None:
    assert load_model_config(write_config(tmp_path, changes)).dtype == dtype


def test_rope_scaling_is_read_in_both_spellings(tmp_path: Path) -> None:
    for key in ("type", "rope_type"):
        changes = {"llm_config.rope_scaling": {key: "linear", "factor": 2}}
        assert load_model_config(write_config(tmp_path, changes)).decoder.rope_scaling == RopeScaling("linear", 2.0)


def test_unknown_keys_and_auto_map_are_ignored_and_nothing_of_the_folder_runs(tmp_path: Path) -> None:
    (tmp_path / "booby_trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto_map = {"AutoConfig": "booby_trap.Config", "AutoModel": "booby_trap.Model"}
    model = load_model_config(
        write_config(tmp_path, {"auto_map": auto_map, "never_heard_of": [1], "random_weights": True})
    )
    assert model.is_random
    assert not (tmp_path / "ran").exists()


REFUSED_BY_NAME = [
    ({"architectures": ["LlavaForConditionalGeneration"]}, "LlavaForConditionalGeneration", "InternVLChatModel"),
    ({"architectures": ..., "model_type": "llava"}, "llava", "InternVLChatModel"),
    ({"architectures": ...}, "None", "InternVLChatModel"),
    ({"llm_config.architectures": ["MambaForCausalLM"]}, "MambaForCausalLM", "InternLM2ForCausalLM"),
    ({"vision_config.hidden_act": "quick_gelu"}, "quick_gelu", "gelu"),
    ({"vision_config.norm_type": "batch_norm"}, "batch_norm", "rms_norm or layer_norm"),
    ({"vision_config.num_channels": 4}, "4", "3"),
    ({"llm_config.hidden_act": "relu"}, "relu", "silu"),
    ({"llm_config.rope_scaling": {"type": "yarn", "factor": 2.0}}, "yarn", "linear or dynamic"),
    ({"ps_version": "v3"}, "v3", "v1 or v2"),
    ({"torch_dtype": "int8"}, "int8", "bfloat16"),
    ({"force_image_size": 448}, "448", "224"),
    ({"pad2square": True}, "True", "false"),
    ({"llm_config.rope_scaling": {"foo": 1}}, "rope_scaling", "type and factor"),
    ({"quantization_config": {"bits": 8}}, "config.json: quantization_config", "not served yet"),
    ({"llm_config.quantization_config": {"quant_method": "awq"}}, "llm_config.quantization_config", "not served yet"),
    ({"vision_config.quantization_config": {"bits": 8}}, "vision_config.quantization_config", "not served yet"),
    ({"use_backbone_lora": 16}, "use_backbone_lora=16", "merge them"),
    ({"use_llm_lora": 16}, "use_llm_lora=16", "merge them"),
]


@pytest.mark.parametrize(("changes", "given", "supported"), REFUSED_BY_NAME)
def test_what_the_model_code_cannot_honour_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], given: str, supported: str
) -> None:
    with pytest.raises(UnsupportedModelError) as refusal:
        load_model_config(write_config(tmp_path, changes))
    assert given in str(refusal.value)
    assert supported in str(refusal.value)


@pytest.mark.parametrize(("changes", "given"), [(changes, given) for changes, given, _ in REFUSED_BY_NAME])
def test_it_is_refused_before_a_weight_is_looked_at(tmp_path: Path, changes: dict[str, Any], given: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UnsupportedModelError) as refusal:
        load_model_config(write_config(tmp_path, {"llm_config.tie_word_embeddings": True, **changes}))
    assert given in str(refusal.value)


def test_adapters_that_are_none_and_a_null_quantisation_are_accepted(tmp_path: Path) -> None:
    none = {"use_backbone_lora": 0, "use_llm_lora": 0, "llm_config.quantization_config": None}
    assert load_model_config(write_config(tmp_path, none)) == load_model_config(write_config(tmp_path))


MALFORMED = [
    ("llm_config.tie_word_embeddings", "yes"),
    ("vision_config", ...),
    ("vision_config", [1]),
    ("llm_config", ...),
    ("llm_config.hidden_size", ...),
    ("llm_config.vocab_size", ...),
    ("llm_config.hidden_size", "64"),
    ("llm_config.hidden_size", True),
    ("llm_config.hidden_size", 64.0),
    ("llm_config.hidden_size", -64),
    ("llm_config.hidden_size", 66),
    ("llm_config.hidden_size", 10**30),
    ("llm_config.hidden_size", 4),
    ("llm_config.num_hidden_layers", 10**6),
    ("llm_config.num_key_value_heads", 3),
    ("llm_config.rms_norm_eps", 0),
    ("llm_config.rope_theta", float("nan")),
    ("llm_config.rope_theta", float("inf")),
    ("llm_config.rope_theta", 10**400),
    ("llm_config.rope_scaling", {"factor": 2.0}),
    ("llm_config.rope_scaling", "linear"),
    ("llm_config.rope_scaling", {"type": "linear"}),
    ("llm_config.rope_scaling", {"type": "linear", "factor": 0.5}),
    ("llm_config.bias", 0),
    ("vision_config.hidden_size", 66),
    ("vision_config.image_size", 225),
    ("vision_config.qkv_bias", "yes"),
    ("architectures", "InternVLChatModel"),
    ("architectures", [1]),
    ("downsample_ratio", 0.3),
    ("downsample_ratio", 0.0),
    ("downsample_ratio", 2.0),
    ("downsample_ratio", 1e-9),
    ("select_layer", 3),
    ("select_layer", -4),
    ("max_dynamic_patch", 0),
    ("min_dynamic_patch", 7),
    ("use_thumbnail", 1),
    ("template", 3),
    ("system_message", 3),
]


@pytest.mark.parametrize(("path", "value"), MALFORMED)
def test_a_malformed_field_is_an_error_that_names_file_and_field(tmp_path: Path, path: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as refusal:
        load_model_config(write_config(tmp_path, {path: value}))
    assert "config.json" in str(refusal.value)
    assert path.split(".")[-1] in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_a_missing_config_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        load_model_config(tmp_path)


def test_reading_a_config_imports_no_torch() -> None:
    code = "import sys, tilewise.checkpoint.hf_config, tilewise.checkpoint.hub; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(tilewise.__file__).parents[1])}
    assert run_command([sys.executable, "-c", code], env=environment).returncode == 0


FIELDS = [*SMALL, *(f"{section}.{key}" for section in ("vision_config", "llm_config") for key in SMALL[section])]
WORDS = st.text(alphabet="a1_é\0", max_size=4)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(field=st.sampled_from([*FIELDS, "llm_config.rope_scaling", "downsample_ratio", "select_layer"]), value=VALUES)
def test_any_value_in_any_field_gives_a_model_or_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    folder = write_config(tmp_path_factory.getbasetemp(), {field: value})
    try:
        model = load_model_config(folder)
    except CheckpointError as refusal:
        assert "config.json" in str(refusal)  # noqa: PT017 (either outcome is right)
    else:
        assert model.tokens_per_tile >= 1
