import json

import pytest

from tests.family import FOLDER, HUGGING_FACE, NOT_YET, SERVED, find_folder, name_release
from tilewise.catalogue import LANGUAGE_MODELS, RELEASES, TOWERS, Release, find_candidates, find_releases
from tilewise.checkpoint.hf_config import SERVED as SERVED_PAIRS
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DecoderConfig, VisionConfig
from tilewise.errors import UnsupportedModelError
from tilewise.inputs.text.profiles import PROFILES
from tilewise.plan import count_weights


def measure_decoder(config: DecoderConfig) -> tuple[object, ...]:
    shape = (config.hidden_size, config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim)
    return config.family, *shape, config.intermediate_size, config.vocab_size


def measure_tower(config: VisionConfig) -> tuple[object, ...]:
    shape = (config.hidden_size, config.num_layers, config.num_heads, config.intermediate_size)
    return *shape, config.norm_type, config.use_qk_norm, config.use_qkv_bias


def test_every_release_has_its_config_and_every_config_a_release() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/config.json")} == {
        *(release.name for release in SERVED),
        *HUGGING_FACE,
    }
    assert {path.parent.name for path in FOLDER.glob("not-yet/*/config.json")} == {r.name for r in NOT_YET}


@pytest.mark.parametrize("release", SERVED, ids=name_release)
def test_the_catalogue_and_a_releases_config_have_the_same_sizes(release: Release) -> None:
    read, listed = load_model_config(find_folder(release)), release.create_model()
    assert measure_decoder(read.decoder) == measure_decoder(listed.decoder)
    assert measure_tower(read.vision) == measure_tower(listed.vision)
    assert read.template == release.template
    assert count_weights(read).total == count_weights(listed).total


@pytest.mark.parametrize("release", SERVED, ids=name_release)
def test_a_release_is_among_the_candidates_of_its_own_config(release: Release) -> None:
    assert release in find_candidates(load_model_config(find_folder(release)))


def test_what_the_catalogue_calls_served_is_what_the_reader_serves() -> None:
    assert {release.architecture for release in SERVED} == {decoder for _, decoder in SERVED_PAIRS}


def test_a_release_has_a_profile_and_a_test_exactly_where_it_is_served() -> None:
    assert all(release.profile in PROFILES and release.tested for release in SERVED)
    assert not any(release.profile or release.tested for release in NOT_YET)


def test_every_language_model_and_tower_belongs_to_a_release() -> None:
    assert {release.language_model for release in RELEASES} == LANGUAGE_MODELS.keys()
    assert {release.tower for release in RELEASES} == TOWERS.keys()
    assert len({release.hub_id for release in RELEASES}) == len(RELEASES)


def test_what_is_not_served_yet_has_no_sizes_and_says_so_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=NOT_YET[0].name):
        NOT_YET[0].create_model()


@pytest.mark.parametrize("release", NOT_YET, ids=name_release)
def test_what_is_not_served_yet_is_found_by_its_class(release: Release) -> None:
    config = json.loads((find_folder(release) / "config.json").read_text())
    assert release in find_releases(config["llm_config"]["architectures"][0])
