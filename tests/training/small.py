"""A model of the demo model's kind, small enough to train in a test."""

from pathlib import Path

import torch
from training.batches import Encoder
from training.network import create_model, describe, initialize, write_config
from training.scenes.sample import Chance

from tilewise.config import ModelConfig
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer
from tilewise.model.internvl import InternVL


class Never(Chance):
    """Says no: turns side by side, in the usual profile."""

    def is_true(self, probability: float) -> bool:
        return False


TOKENIZER = Path(__file__).parents[2] / "training" / "tokenizer"
# Patches of 56 pixels: 64 a tile, 16 positions after pixel shuffle.
CHANGES = {
    "vision_config": {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "patch_size": 56,
    },
    "llm_config": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
    },
}


def load() -> Tokenizer:
    return load_tokenizer(TOKENIZER)


def make_config(folder: Path) -> ModelConfig:
    return write_config(folder, describe(load().vocab_size, **CHANGES))


def make_model(folder: Path, seed: int = 0) -> tuple[InternVL, Encoder]:
    torch.set_num_threads(1)
    config = make_config(folder)
    model = create_model(config)
    initialize(model, seed)
    return model, Encoder(load(), config.tokens_per_tile)
