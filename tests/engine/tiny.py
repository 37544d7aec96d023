"""A model small enough to ask it hundreds of questions in a second, and an engine driven without a thread."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tilewise.config import DecoderConfig, EngineConfig, ModelConfig, VisionConfig
from tilewise.engine.core import EngineCore, build_core
from tilewise.engine.messages import Submit
from tilewise.inputs.media.sources import prepare_image
from tilewise.types import GenerationConfig, ImageSpan, PreparedImage, Request, StepOutput, TilingParameters

TILE_SIZE = 28
VOCAB_SIZE = 151
IMAGE_ID = 150
BLOCK_SIZE = 16
GREEDY = GenerationConfig(max_new_tokens=8)
MODEL = ModelConfig(
    architecture="InternVLChatModel",
    vision=VisionConfig(
        hidden_size=24, num_layers=2, num_heads=3, intermediate_size=40, image_size=TILE_SIZE, patch_size=7
    ),
    decoder=DecoderConfig(
        family="internlm2",
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,  # the smallest that the kernels take: on a GPU its steps are captured
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=512,
    ),
    dtype="float32",
)
PER_TILE = MODEL.tokens_per_tile
KV_BLOCK_BYTES = 2 * 2 * 2 * 16 * 4 * BLOCK_SIZE
TILE_BYTES = PER_TILE * 32 * 4


def make_core(*, num_blocks: int = 256, num_tile_rows: int = 256, **options: object) -> EngineCore:
    """An engine over one and the same random model; its weights are large enough that answers vary."""
    given = {
        "device": "cpu",
        "load_format": "dummy",
        "cache_block_seq_len": BLOCK_SIZE,
        "kv_cache_bytes": num_blocks * KV_BLOCK_BYTES // (2 if options.get("dtype") == "bfloat16" else 1),
        "image_cache_bytes": num_tile_rows * TILE_BYTES,
        "max_prefill_tiles": 4,
        **options,
    }
    torch.set_num_threads(1)  # threads that wait for each other take sixty times as long over matrices this small
    core, _ = build_core(Path(), MODEL, EngineConfig.from_options(given))
    assert core.scheduler.kv.pool.num_blocks == num_blocks
    with torch.no_grad():
        for parameter in core.runner.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12.0)
    return core


def make_picture(
    seed: int,
    columns: int = 1,
    rows: int = 1,
    tiling: TilingParameters | None = None,
    size: tuple[int, int] | None = None,
) -> PreparedImage:
    """Noise of the grid's own shape: columns * rows tiles, and a thumbnail where there is more than one."""
    width, height = size or (columns * TILE_SIZE, rows * TILE_SIZE)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return prepare_image(Image.fromarray(pixels), tiling or TilingParameters(tile_size=TILE_SIZE))


def make_request(
    request_id: str,
    parts: Iterable[Sequence[int] | PreparedImage],
    generation: GenerationConfig = GREEDY,
    stop_token_ids: tuple[int, ...] = (),
    namespace: str = "",
) -> Request:
    """A prompt of pieces of text, as ids, and of pictures, in order."""
    token_ids: list[int] = []
    spans: list[ImageSpan] = []
    images: list[PreparedImage] = []
    for part in parts:
        if not isinstance(part, PreparedImage):
            token_ids += part
            continue
        start = len(token_ids)
        token_ids += [IMAGE_ID] * (part.num_tiles * PER_TILE)
        spans.append(ImageSpan(start, len(token_ids), len(images)))
        images.append(part)
    return Request(request_id, tuple(token_ids), tuple(spans), tuple(images), generation, stop_token_ids, namespace)


def run(core: EngineCore, requests: Iterable[Request]) -> dict[str, list[StepOutput]]:
    """Submit all at once, step until everything has ended, and hold the engine to its laws on the way."""
    heard: dict[str, list[StepOutput]] = {}
    outputs = [output for request in requests for output in core.receive(Submit((request,)))]
    while outputs or core.has_work:
        for output in outputs:
            said = heard.setdefault(output.request_id, [])
            assert not said or said[-1].finish_reason is None, "heard of a request that had ended"
            said.append(output)
        core.scheduler.check_integrity()
        outputs = core.step() if core.has_work else []
    assert core.scheduler.kv.pool.num_held == 0
    return heard


def answer(core: EngineCore, requests: Iterable[Request]) -> dict[str, list[int]]:
    """The ids of every request's answer."""
    heard = run(core, requests)
    assert all(outputs[-1].error is None for outputs in heard.values())
    return {
        request_id: [token_id for output in outputs for token_id in output.token_ids]
        for request_id, outputs in heard.items()
    }
