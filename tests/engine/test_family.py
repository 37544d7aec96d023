"""Every served checkpoint's kind of model runs: two layers of each part, random weights, a picture and an answer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engine.tiny import answer, make_picture
from tests.family import FOLDER, HUGGING_FACE, SERVED
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import EngineConfig, ModelConfig
from tilewise.engine.core import build_core
from tilewise.types import GenerationConfig, ImageSpan, Request, TilingParameters

VOCAB_SIZE, IMAGE_ID = 320, 319
# A tile of 8x8 patches.
TILE_SIZE = 112
# Heads, widths and all flags stay as they are up to here; above, there are fewer heads of the same size and grouping.
MAX_WIDTH = 1024


def reduce_model(model: ModelConfig) -> ModelConfig:
    """Two layers, a small vocabulary and small tiles; what is wide keeps its heads' size and queries a key alone."""
    decoder, vision = model.decoder, model.vision
    if decoder.hidden_size > MAX_WIDTH:
        num_heads = 2 * decoder.num_heads // decoder.num_kv_heads
        decoder = replace(decoder, hidden_size=256, intermediate_size=512, num_heads=num_heads, num_kv_heads=2)
    if vision.hidden_size > MAX_WIDTH:
        vision = replace(vision, hidden_size=2 * vision.head_dim, num_heads=2, intermediate_size=512)
    return replace(
        model,
        decoder=replace(decoder, num_layers=2, vocab_size=VOCAB_SIZE, max_position_embeddings=512),
        vision=replace(vision, num_layers=2, image_size=TILE_SIZE),
        dtype="float32",
    )


def make_request(request_id: str, model: ModelConfig, seed: int) -> Request:
    image = make_picture(seed, tiling=TilingParameters(tile_size=TILE_SIZE, max_tiles=1), size=(TILE_SIZE, TILE_SIZE))
    token_ids = (1, 2, 3, *[IMAGE_ID] * model.tokens_per_tile, 4, 5)
    span = ImageSpan(3, 3 + model.tokens_per_tile, 0)
    return Request(request_id, token_ids, (span,), (image,), GenerationConfig(max_new_tokens=6), ())


@pytest.mark.parametrize("name", [*(release.name for release in SERVED), *HUGGING_FACE])
def test_it_runs_with_two_layers_and_answers_alike_alone_and_in_a_batch(name: str) -> None:
    model = reduce_model(load_model_config(FOLDER / name))
    torch.set_num_threads(1)
    options = {"kv_cache_bytes": 64 << 20, "image_cache_bytes": 0, "enable_prefix_caching": False}
    core, _ = build_core(Path(), model, EngineConfig(device="cpu", load_format="dummy", **options))
    with torch.no_grad():  # large enough that answers vary
        for parameter in core.runner.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12.0)
    first, second = make_request("1", model, seed=1), make_request("2", model, seed=2)
    together = answer(core, [first, second])
    assert {len(ids) for ids in together.values()} == {6}
    assert all(0 <= token_id < VOCAB_SIZE for ids in together.values() for token_id in ids)
    assert answer(core, [second]) == {"2": together["2"]}
