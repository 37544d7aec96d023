"""Every served checkpoint of the family loads and plans from its config.json; every other is refused by name."""

import json

import pytest

from tests.family import NOT_YET, SERVED, find_folder, name_release
from tilewise.catalogue import Release
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DeviceConfig, EngineConfig
from tilewise.errors import UnsupportedModelError
from tilewise.plan import fit_memory

GIB = 1 << 30


@pytest.mark.parametrize("release", SERVED, ids=name_release)
def test_every_served_checkpoint_loads_and_plans(release: Release) -> None:
    model = load_model_config(find_folder(release))
    fit = fit_memory(EngineConfig(), model, DeviceConfig("cuda"), 192 * GIB)
    assert fit.num_blocks
    assert not fit.changes
    assert (model.tokens_per_tile, model.pixel_shuffle_version, model.max_dynamic_patch) == (256, "v2", 12)
    assert (model.use_thumbnail, model.select_layer, model.is_random) == (True, -1, False)


@pytest.mark.parametrize("release", NOT_YET, ids=name_release)
def test_what_is_not_served_yet_is_refused_by_name_with_what_is(release: Release) -> None:
    with pytest.raises(UnsupportedModelError) as refusal:
        load_model_config(find_folder(release))
    said = str(refusal.value)
    assert all(word in said for word in (release.name, release.architecture, "not served yet", "tilewise list"))
    assert "InternLM2ForCausalLM" in said
    assert "config.json" in said
    assert "only" not in said
    assert said.count(". ") == 0, "one sentence"


@pytest.mark.parametrize("release", NOT_YET, ids=name_release)
def test_it_is_refused_by_its_model_type_too(release: Release, tmp_path) -> None:
    config = json.loads((find_folder(release) / "config.json").read_text())
    del config["llm_config"]["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="not served yet"):
        load_model_config(tmp_path)
