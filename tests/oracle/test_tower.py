"""Tower and projector against transformers' InternVL, in fp32 on small random configurations."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.oracle.twins import TILE_SIZE, build_engine, create_twin, relative_error
from tilewise.model.internvl import InternVL

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(3, 3, TILE_SIZE, TILE_SIZE, generator=torch.Generator().manual_seed(7))


def build_model(twin, folder: Path, **options) -> InternVL:
    return build_engine(twin, folder, **options).runner.model


@torch.no_grad()
def hidden_states(tower, pixels: Tensor) -> list[Tensor]:
    """Embeddings, then the stream after each layer: what `select_layer` indexes."""
    states = [tower.embeddings(pixels)]
    for layer in tower.encoder.layer:
        states.append(layer(states[-1]))
    return states


@torch.no_grad()
@pytest.mark.parametrize("flavour", ["6b", "300m"])
def test_tower_equals_transformers(flavour: str, pixels: Tensor, tmp_path: Path) -> None:
    twin = create_twin(flavour)
    expected = twin.model.vision_tower(pixels).last_hidden_state[:, 1:]
    assert relative_error(build_model(twin, tmp_path).tower(pixels), expected) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("select_layer", [-4, -2, 0, 1, 3])
def test_select_layer_indexes_the_hidden_states_from_the_embeddings_on(
    select_layer: int, pixels: Tensor, tmp_path: Path
) -> None:
    twin = create_twin(select_layer=select_layer)
    expected = hidden_states(twin.model.vision_tower, pixels)[select_layer][:, 1:]
    assert relative_error(build_model(twin, tmp_path).tower(pixels), expected) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("flavour", ["6b", "300m"])
@pytest.mark.parametrize("select_layer", [-1, -2])
def test_tower_and_projector_equal_transformers(
    flavour: str, select_layer: int, pixels: Tensor, tmp_path: Path
) -> None:
    twin = create_twin(flavour, select_layer=select_layer)
    model = build_model(twin, tmp_path)
    expected = twin.model.get_image_features(pixels).pooler_output
    assert relative_error(model.projector(model.tower(pixels)), expected) < TOLERANCE


@torch.no_grad()
def test_the_projectors_norm_keeps_its_own_epsilon(tmp_path: Path) -> None:
    twin = create_twin()
    faint = 1e-3 * torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(8))
    shuffled = twin.model.pixel_shuffle(faint.unflatten(1, (4, 4)), 0.5).flatten(1, 2)
    expected = twin.model.multi_modal_projector(shuffled)
    assert relative_error(build_model(twin, tmp_path).projector(faint), expected) < TOLERANCE


@torch.no_grad()
def test_pixel_shuffle_v1_leaves_the_two_axes_of_positions_swapped(pixels: Tensor, tmp_path: Path) -> None:
    twin = create_twin()
    model = build_model(twin, tmp_path, pixel_shuffle="v1")
    features = hidden_states(twin.model.vision_tower, pixels)[-1][:, 1:].unflatten(1, (4, 4))
    swapped = twin.model.pixel_shuffle(features, 0.5).transpose(1, 2).flatten(1, 2)
    expected = twin.model.multi_modal_projector(swapped)
    ours = model.projector(model.tower(pixels))
    assert relative_error(ours, expected) < TOLERANCE
    assert relative_error(ours, twin.model.get_image_features(pixels).pooler_output) > 0.1
