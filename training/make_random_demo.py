"""Make the embedded model's configuration and random weights: `python training/make_random_demo.py`.

The same bytes on every machine and with every version of torch: the numbers come from Python's own generator,
whose integers are promised to stay. The tokenizer must have been trained before.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from safetensors.torch import save

from tilewise import demo
from tilewise.inputs.tokenizer import load_tokenizer

WEIGHT_STD = 0.02
LAYER_SCALE = 0.1

VISION = {
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "hidden_act": "gelu",
    "hidden_size": 128,
    "image_size": 448,
    "intermediate_size": 256,
    "layer_norm_eps": 1e-6,
    "norm_type": "rms_norm",
    "num_attention_heads": 4,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "qk_normalization": True,
    "qkv_bias": False,
    "torch_dtype": "bfloat16",
}
# Eight query heads on four KV heads, as grouped as the 26B's are and divisible by up to four ranks.
LANGUAGE = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "max_position_embeddings": 32768,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def describe(vocab_size: int) -> dict[str, object]:
    """The config.json, marked as never trained."""
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "random_weights": True,
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internlm2-chat",
        "torch_dtype": "bfloat16",
        "use_thumbnail": True,
        "llm_config": {**LANGUAGE, "vocab_size": vocab_size},
        "vision_config": VISION,
    }


def make_weights(vocab_size: int) -> dict[str, torch.Tensor]:
    """Every tensor under its official name, in bf16."""
    weights: dict[str, torch.Tensor] = {}

    def uniform(name: str, *shape: int) -> None:
        """Numbers of standard deviation `WEIGHT_STD`, seeded by the name."""
        count = torch.Size(shape).numel()
        raw = bytearray(random.Random(f"tilewise {name}").randbytes(2 * count))
        integers = torch.frombuffer(raw, dtype=torch.int16).view(shape)
        weights[name] = (integers.to(torch.float64) * (WEIGHT_STD * 3**0.5 / 32768)).to(torch.bfloat16)

    def constant(value: float, *names: str, size: int) -> None:
        weights.update({name: torch.full((size,), value, dtype=torch.bfloat16) for name in names})

    width, inner = VISION["hidden_size"], VISION["intermediate_size"]
    embeddings = "vision_model.embeddings."
    uniform(embeddings + "class_embedding", 1, 1, width)
    uniform(embeddings + "position_embedding", 1, 1 + (VISION["image_size"] // VISION["patch_size"]) ** 2, width)
    uniform(embeddings + "patch_embedding.weight", width, 3, VISION["patch_size"], VISION["patch_size"])
    constant(0.0, embeddings + "patch_embedding.bias", size=width)
    for number in range(VISION["num_hidden_layers"]):
        layer = f"vision_model.encoder.layers.{number}."
        uniform(layer + "attn.qkv.weight", 3 * width, width)
        uniform(layer + "attn.proj.weight", width, width)
        uniform(layer + "mlp.fc1.weight", inner, width)
        uniform(layer + "mlp.fc2.weight", width, inner)
        constant(0.0, layer + "attn.proj.bias", layer + "mlp.fc2.bias", size=width)
        constant(0.0, layer + "mlp.fc1.bias", size=inner)
        norms = ("attn.q_norm", "attn.k_norm", "norm1", "norm2")
        constant(1.0, *(f"{layer}{norm}.weight" for norm in norms), size=width)
        constant(LAYER_SCALE, layer + "ls1", layer + "ls2", size=width)

    wide, hidden, inner = 4 * width, LANGUAGE["hidden_size"], LANGUAGE["intermediate_size"]
    constant(1.0, "mlp1.0.weight", size=wide)
    constant(0.0, "mlp1.0.bias", size=wide)
    constant(0.0, "mlp1.1.bias", "mlp1.3.bias", size=hidden)
    uniform("mlp1.1.weight", hidden, wide)
    uniform("mlp1.3.weight", hidden, hidden)

    head_dim = hidden // LANGUAGE["num_attention_heads"]
    uniform("language_model.model.tok_embeddings.weight", vocab_size, hidden)
    uniform("language_model.output.weight", vocab_size, hidden)
    constant(1.0, "language_model.model.norm.weight", size=hidden)
    for number in range(LANGUAGE["num_hidden_layers"]):
        layer = f"language_model.model.layers.{number}."
        uniform(layer + "attention.wqkv.weight", hidden + 2 * LANGUAGE["num_key_value_heads"] * head_dim, hidden)
        uniform(layer + "attention.wo.weight", hidden, hidden)
        uniform(layer + "feed_forward.w1.weight", inner, hidden)
        uniform(layer + "feed_forward.w3.weight", inner, hidden)
        uniform(layer + "feed_forward.w2.weight", hidden, inner)
        constant(1.0, layer + "attention_norm.weight", layer + "ffn_norm.weight", size=hidden)
    return weights


def main() -> None:
    """Write config.json, generation_config.json and model.safetensors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=demo.model_folder(), help="folder to write to")
    out = parser.parse_args().out
    tokenizer = load_tokenizer(demo.model_folder())
    out.mkdir(parents=True, exist_ok=True)
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": [2, tokenizer.special_id("<|im_end|>")]}
    for name, data in (("config", describe(tokenizer.vocab_size)), ("generation_config", generation)):
        (out / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n", "utf-8")
    weights = save(make_weights(tokenizer.vocab_size), metadata={"format": "pt"})
    (out / "model.safetensors").write_bytes(weights)


if __name__ == "__main__":
    main()
