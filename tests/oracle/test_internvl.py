"""Pictures and text through the whole engine against transformers' InternVL: fp32, on the CPU."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels import pillow
from tests.oracle.driving import answer, record_logits
from tests.oracle.twins import IMAGE_ID, TILE_SIZE, build_engine, create_twin, relative_error
from tilewise.config import LayoutName
from tilewise.types import GenerationConfig, ImageSpan, PreparedImage, Request

NUM_NEW = 32
TOLERANCE = 1e-4
TOKENS_PER_TILE = 4


def prepare(width: int, height: int, columns: int, rows: int) -> PreparedImage:
    pixels = pillow.make_picture(width, height, seed=width).numpy().tobytes()
    digest = hashlib.sha256(pixels).digest()
    return PreparedImage(width, height, pixels, columns, rows, columns * rows > 1, digest)


def make_request(name: str, *parts: tuple[int, ...] | PreparedImage) -> Request:
    """Ids as they are, and for a picture its span of context ids."""
    images = [part for part in parts if isinstance(part, PreparedImage)]
    ids: list[int] = []
    spans: list[ImageSpan] = []
    for part in parts:
        start = len(ids)
        if isinstance(part, PreparedImage):
            ids += [IMAGE_ID] * (part.num_tiles * TOKENS_PER_TILE)
            spans.append(ImageSpan(start, len(ids), len(spans)))
        else:
            ids += part
    generation = GenerationConfig(max_new_tokens=NUM_NEW, bad_token_ids=(IMAGE_ID,))
    return Request(name, tuple(ids), tuple(spans), tuple(images), generation)


def cut_with_pillow(image: PreparedImage) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8).view(image.height, image.width, 3)
    return pillow.normalize(pillow.cut(pixels, image.columns, image.rows, image.has_thumbnail, TILE_SIZE))


@torch.no_grad()
def continue_greedily(twin, request: Request) -> tuple[list[int], Tensor]:
    pixels = torch.cat([cut_with_pillow(image) for image in request.images]) if request.images else None
    ids = torch.tensor([request.token_ids])
    rows: list[Tensor] = []
    for _ in range(NUM_NEW):
        rows.append(twin(input_ids=ids, pixel_values=pixels).logits[0, -1].clone())
        allowed = rows[-1].index_fill(0, torch.tensor([IMAGE_ID]), -torch.inf)
        ids = torch.cat((ids, allowed.argmax().view(1, 1)), dim=1)
    return ids[0, len(request.token_ids) :].tolist(), torch.stack(rows)


TWO_PICTURES = make_request("two", (1, 17, 30), prepare(130, 90, 2, 1), (44, 45), prepare(70, 200, 1, 3), (8, 99, 5))


@pytest.mark.parametrize("flavour", ["6b", "300m"])
@pytest.mark.parametrize("chunk", [1024, 7], ids=["whole", "chunks that end inside a tile"])
def test_an_answer_about_two_pictures_equals_transformers(flavour: str, chunk: int, tmp_path: Path) -> None:
    twin = create_twin(flavour)
    expected_ids, expected_logits = continue_greedily(twin, TWO_PICTURES)
    core = build_engine(twin, tmp_path, max_prefill_token_num=chunk)
    logits = record_logits(core)
    assert answer(core, TWO_PICTURES)["two"].token_ids == expected_ids
    assert len(set(expected_ids)) > NUM_NEW // 2
    assert relative_error(torch.cat(logits), expected_logits) < TOLERANCE


@pytest.mark.parametrize("layout", ["hf_flat", "hf_nested"])
@pytest.mark.parametrize("flavour", ["6b", "300m"])
@pytest.mark.parametrize("text", [{"model_type": "qwen2"}, {"model_type": "qwen3", "head_dim": 48}], ids=str)
def test_the_hugging_face_layout_answers_as_the_class_that_it_is_named_after(
    text: dict[str, Any], flavour: str, layout: LayoutName, tmp_path: Path
) -> None:
    twin = create_twin(flavour, text=text, is_official=False)
    expected_ids, expected_logits = continue_greedily(twin, TWO_PICTURES)
    core = build_engine(twin, tmp_path, layout=layout)
    logits = record_logits(core)
    assert answer(core, TWO_PICTURES)["two"].token_ids == expected_ids
    assert len(set(expected_ids)) > NUM_NEW // 4
    assert relative_error(torch.cat(logits), expected_logits) < TOLERANCE


def test_one_model_answers_alike_in_every_layout(tmp_path: Path) -> None:
    twin = create_twin("300m", text={"model_type": "qwen3", "head_dim": 48}, select_layer=-2)
    answers: list[list[int]] = []
    for layout in ("official", "hf_flat", "hf_nested"):
        folder = tmp_path / layout
        folder.mkdir()
        answers.append(answer(build_engine(twin, folder, layout=layout), TWO_PICTURES)["two"].token_ids)
    assert answers[0] == answers[1] == answers[2] == continue_greedily(twin, TWO_PICTURES)[0]


def test_the_answer_depends_on_every_picture(tmp_path: Path) -> None:
    text, first, middle, second, end = (1, 17), prepare(130, 90, 2, 1), (44,), prepare(70, 200, 1, 3), (8, 99)
    other_first, other_second = prepare(131, 90, 2, 1), prepare(71, 200, 1, 3)
    requests = [
        make_request("both", text, first, middle, second, end),
        make_request("other first", text, other_first, middle, second, end),
        make_request("other second", text, first, middle, other_second, end),
    ]
    answers = answer(build_engine(create_twin(), tmp_path), *requests)
    assert len({tuple(state.token_ids) for state in answers.values()}) == 3


def test_pictures_in_company_and_from_the_cache_equal_transformers(tmp_path: Path) -> None:
    twin = create_twin()
    requests = [
        make_request("single tile", (3, 4), prepare(56, 56, 1, 1), (9,)),
        make_request("text", tuple(range(40))),
        TWO_PICTURES,
        make_request("picture last", (7,) * 20, prepare(300, 40, 3, 1)),
    ]
    core = build_engine(twin, tmp_path, max_prefill_token_num=24, cache_block_seq_len=16)
    expected = {request.request_id: continue_greedily(twin, request)[0] for request in requests}
    first, second = answer(core, *requests), answer(core, *requests)
    assert {name: state.token_ids for name, state in first.items()} == expected
    assert {name: state.token_ids for name, state in second.items()} == expected
    assert second["two"].cached_tokens > TWO_PICTURES.spans[0].start
