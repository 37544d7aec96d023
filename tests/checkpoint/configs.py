"""Small config.json files of both layouts, and changes to them by dotted paths."""

import copy
import json
from pathlib import Path
from typing import Any

OFFICIAL: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "vision_config": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 128},
    "llm_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "max_position_embeddings": 512,
    },
}
HUGGING_FACE: dict[str, Any] = {
    "architectures": ["InternVLForConditionalGeneration"],
    "model_type": "internvl",
    "vision_config": {"model_type": "internvl_vision"},
    "text_config": {"model_type": "qwen2"},
}


def write_config(folder: Path, config: dict[str, Any], changes: dict[str, Any] | None = None) -> Path:
    """Write config.json with `changes`, whose keys are dotted paths; ... deletes."""
    data = copy.deepcopy(config)
    for path, value in (changes or {}).items():
        *parents, key = path.split(".")
        section = data
        for parent in parents:
            section = section[parent]
        section.pop(key, None) if value is ... else section.update({key: value})
    (folder / "config.json").write_text(json.dumps(data))
    return folder
