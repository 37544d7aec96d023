"""InternVLForConditionalGeneration's folder: its config.json, its processor's files, and its tensors' names."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import InternVLConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

import tilewise
from tests.checkpoint.configs import HUGGING_FACE, write_config
from tests.processes import run_command
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.errors import CheckpointError, UnsupportedModelError

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
FLAT = ("language_model.model.norm.weight", "vision_tower.embeddings.cls_token", "language_model.lm_head.weight")
NESTED = ("model.language_model.norm.weight", "model.vision_tower.embeddings.cls_token", "lm_head.weight")


def write_index(folder: Path, names: tuple[str, ...]) -> None:
    weight_map = dict.fromkeys(names, "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def save_processor(folder: Path, **changes: Any) -> Path:
    """preprocessor_config.json as transformers writes it."""
    fields = {"size": {"height": 448, "width": 448}, **IMAGENET, **changes}
    GotOcr2ImageProcessorPil(**fields).save_pretrained(folder)
    return folder / "preprocessor_config.json"


def test_what_transformers_saves_reads_as_its_own_facts(tmp_path: Path) -> None:
    vision = {"use_qk_norm": True, "attention_bias": True, "norm_type": "rms_norm", "num_hidden_layers": 45}
    text = {
        "model_type": "qwen3",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "num_hidden_layers": 3,
    }
    InternVLConfig(vision_config=vision, text_config=text, vision_feature_layer=-2).save_pretrained(tmp_path)
    model = load_model_config(tmp_path)
    tower, decoder = model.vision, model.decoder
    assert (model.architecture, model.template, model.layout) == ("InternVLForConditionalGeneration", None, "hf_flat")
    assert (tower.hidden_size, tower.num_layers, tower.num_heads, tower.intermediate_size) == (1024, 45, 16, 4096)
    assert (tower.image_size, tower.patch_size, tower.norm_type, tower.norm_eps) == (448, 14, "rms_norm", 1e-6)
    assert (tower.use_qk_norm, tower.use_qkv_bias, tower.qk_norm_eps) == (True, True, 1e-6)
    assert (decoder.family, decoder.num_layers, decoder.head_dim, decoder.rope_theta) == ("qwen3", 3, 128, 1e6)
    assert (model.select_layer, model.pixel_shuffle_version, model.tokens_per_tile) == (-2, "v2", 256)
    assert (model.min_dynamic_patch, model.max_dynamic_patch, model.use_thumbnail) == (1, 12, True)


def test_absent_keys_take_the_defaults_of_transformers(tmp_path: Path) -> None:
    theirs = InternVLConfig()
    vision, text = theirs.vision_config, theirs.text_config
    model = load_model_config(write_config(tmp_path, HUGGING_FACE))
    tower = model.vision
    assert (tower.hidden_size, tower.num_layers) == (vision.hidden_size, vision.num_hidden_layers)
    assert (tower.num_heads, tower.intermediate_size) == (vision.num_attention_heads, vision.intermediate_size)
    assert [tower.image_size] * 2 == list(vision.image_size)
    assert [tower.patch_size] * 2 == list(vision.patch_size)
    assert (tower.norm_type, tower.norm_eps) == (vision.norm_type, vision.layer_norm_eps)
    assert (tower.use_qk_norm, tower.use_qkv_bias) == (vision.use_qk_norm, vision.attention_bias)
    assert (model.decoder.family, model.decoder.hidden_size) == (text.model_type, text.hidden_size)
    assert (model.downsample_ratio, model.select_layer) == (theirs.downsample_ratio, theirs.vision_feature_layer)


def test_the_norms_of_the_towers_queries_and_keys_keep_their_own_epsilon(tmp_path: Path) -> None:
    changes = {"vision_config.layer_norm_eps": 1e-3}
    vision = load_model_config(write_config(tmp_path, HUGGING_FACE, changes)).vision
    assert (vision.norm_eps, vision.qk_norm_eps) == (1e-3, 1e-6)


def test_a_side_is_a_number_or_height_and_width(tmp_path: Path) -> None:
    changes = {"vision_config.image_size": 448, "vision_config.patch_size": [14, 14]}
    assert load_model_config(write_config(tmp_path, HUGGING_FACE, changes)).tokens_per_tile == 256


def test_tiles_come_from_the_image_processors_file(tmp_path: Path) -> None:
    write_config(tmp_path, HUGGING_FACE)
    own = save_processor(tmp_path, min_patches=2, max_patches=6)
    assert json.loads(own.read_text())["crop_to_patches"] is False
    model = load_model_config(tmp_path)
    assert (model.min_dynamic_patch, model.max_dynamic_patch, model.use_thumbnail) == (2, 6, True)


def test_the_combined_file_comes_before_the_image_processors_own(tmp_path: Path) -> None:
    write_config(tmp_path, HUGGING_FACE)
    own = save_processor(tmp_path, max_patches=6)
    combined = {"image_processor": {**json.loads(own.read_text()), "max_patches": 9}, "image_seq_length": 256}
    (tmp_path / "processor_config.json").write_text(json.dumps(combined))
    assert load_model_config(tmp_path).max_dynamic_patch == 9
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_seq_length": 256}))
    assert load_model_config(tmp_path).max_dynamic_patch == 6


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"size": {"height": 384, "width": 384}}, "size"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0.5]}, "image_std"),
        ({"resample": 2}, "resample"),
        ({"rescale_factor": 1 / 127}, "rescale_factor"),
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_normalize": False}, "do_normalize"),
        ({"max_patches": 65}, "max_patches"),
        ({"min_patches": 13}, "min_patches"),
    ],
    ids=str,
)
def test_a_processor_that_would_make_other_pixels_is_refused_by_name(
    change: dict[str, Any], field: str, tmp_path: Path
) -> None:
    write_config(tmp_path, HUGGING_FACE)
    save_processor(tmp_path, **change)
    with pytest.raises(CheckpointError, match=rf"^preprocessor_config\.json: {field}"):
        load_model_config(tmp_path)


@pytest.mark.parametrize("field", ["image_mean", "image_std", "size"])
def test_what_a_processor_leaves_to_another_models_defaults_is_refused_by_name(field: str, tmp_path: Path) -> None:
    write_config(tmp_path, HUGGING_FACE)
    own = save_processor(tmp_path)
    fields = json.loads(own.read_text())
    del fields[field]
    own.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=rf"^preprocessor_config\.json: {field} is missing"):
        load_model_config(tmp_path)


def test_a_rescale_factor_of_few_digits_is_the_same(tmp_path: Path) -> None:
    write_config(tmp_path, HUGGING_FACE)
    save_processor(tmp_path, rescale_factor=0.00392156863)
    assert load_model_config(tmp_path).max_dynamic_patch == 12


@pytest.mark.parametrize(("names", "layout"), [(FLAT, "hf_flat"), (NESTED, "hf_nested")])
def test_the_weights_say_which_names_they_have_and_whether_a_head_is_their_own(
    names: tuple[str, ...], layout: str, tmp_path: Path
) -> None:
    write_config(tmp_path, HUGGING_FACE)
    write_index(tmp_path, names)
    model = load_model_config(tmp_path)
    assert (model.layout, model.decoder.is_head_tied) == (layout, False)
    write_index(tmp_path, names[:2])
    model = load_model_config(tmp_path)
    assert (model.layout, model.decoder.is_head_tied) == (layout, True)
    write_config(tmp_path, HUGGING_FACE, {"tie_word_embeddings": False})
    assert not load_model_config(tmp_path).decoder.is_head_tied


@pytest.mark.parametrize(
    ("changes", "given", "supported"),
    [
        ({"text_config.model_type": "gpt_oss"}, "gpt_oss", "Qwen2ForCausalLM, Qwen3ForCausalLM"),
        ({"text_config.model_type": "internlm2"}, "internlm2", "Qwen2ForCausalLM"),
        ({"text_config.architectures": ["Qwen3MoeForCausalLM"]}, "Qwen3MoeForCausalLM", "Qwen3ForCausalLM"),
        ({"vision_config.hidden_act": "quick_gelu"}, "quick_gelu", "gelu"),
        ({"vision_config.norm_type": "batch_norm"}, "batch_norm", "rms_norm or layer_norm"),
        ({"vision_config.num_channels": 4}, "4", "3"),
        ({"vision_config.use_mask_token": True}, "use_mask_token", "only false"),
        ({"vision_config.use_mean_pooling": False}, "use_mean_pooling", "only true"),
        ({"vision_config.use_absolute_position_embeddings": False}, "use_absolute_position_embeddings", "only true"),
        ({"vision_feature_select_strategy": "full"}, "full", "default"),
        ({"projector_hidden_act": "relu"}, "relu", "gelu"),
        ({"image_seq_length": 64}, "64", "256"),
        ({"text_config.quantization_config": {"bits": 4}}, "text_config.quantization_config", "not served yet"),
        ({"quantization_config": {"bits": 4}}, "config.json: quantization_config", "not served yet"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(
    changes: dict[str, Any], given: str, supported: str, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")  # which would be another refusal, if it were opened
    with pytest.raises(UnsupportedModelError) as refusal:
        load_model_config(write_config(tmp_path, HUGGING_FACE, changes))
    assert given in str(refusal.value)
    assert supported in str(refusal.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision_config", ...),
        ("text_config", [1]),
        ("vision_config.image_size", [448, 224]),
        ("vision_config.image_size", []),
        ("vision_config.image_size", "448"),
        ("vision_config.patch_size", [[14], [14]]),
        ("vision_config.patch_size", 15),
        ("vision_config.hidden_size", 1023),
        ("vision_feature_layer", [-1, -2]),
        ("vision_feature_layer", 25),
        ("downsample_ratio", 0.3),
        ("tie_word_embeddings", "no"),
    ],
)
def test_a_malformed_field_is_an_error_that_names_file_and_field(path: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as refusal:
        load_model_config(write_config(tmp_path, HUGGING_FACE, {path: value}))
    named = {"vision_config.patch_size": "image_size"}.get(path, path) if value == 15 else path
    assert "config.json" in str(refusal.value)
    assert named.split(".")[-1] in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_names_of_tensors_are_read_without_torch(tmp_path: Path) -> None:
    folder = Path(tilewise.__file__).parent / "demo" / "model"
    code = (
        "import sys; from pathlib import Path; from tilewise.checkpoint.shards import list_tensor_names as names;"
        f"sys.exit(not names(Path({str(folder)!r})) or 'torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(Path(tilewise.__file__).parents[1])}
    assert run_command([sys.executable, "-c", code], env=environment).returncode == 0


WORDS = st.text(alphabet="a1_é\0", max_size=4)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))
FIELDS = (
    *("vision_config", "text_config", "tie_word_embeddings", "image_seq_length", "vision_feature_layer"),
    *(f"vision_config.{key}" for key in ("image_size", "patch_size", "norm_type", "use_mask_token", "num_channels")),
    *(f"text_config.{key}" for key in ("rope_scaling", "rope_parameters", "layer_types", "sliding_window", "head_dim")),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(field=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_in_any_field_gives_a_model_or_a_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    folder = write_config(tmp_path_factory.getbasetemp(), HUGGING_FACE, {field: value})
    try:
        model = load_model_config(folder)
    except CheckpointError as refusal:
        assert "config.json" in str(refusal)  # noqa: PT017 (either outcome is right)
    else:
        assert model.tokens_per_tile >= 1
