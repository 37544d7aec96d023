"""What every test shares: data, Hypothesis profiles, who needs a GPU, and a pipeline over a scripted engine."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import settings

from tests.scripted import MakePipeline, Script, ScriptedClient
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import ChatTemplateConfig, DeviceConfig, EngineConfig, resolve
from tilewise.demo import model_folder
from tilewise.engine.launch import Checkpoint, Engine
from tilewise.inputs.request_builder import create_builder
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer
from tilewise.offline.pipeline import Pipeline

REPOSITORY = Path(__file__).resolve().parent.parent

# On a shared machine an example's time says nothing; a fixed seed keeps one change's failure out of another's.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The seed's picture, tokenizer and goldens, which are not part of the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data with the seed's picture and tokenizer is not here")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs = {"gpu": 1, "multigpu": 2}
    marked = [(item, count) for item in items for name, count in needs.items() if item.get_closest_marker(name)]
    if not marked:
        return
    import torch

    for item, count in marked:
        if torch.cuda.device_count() < count:
            item.add_marker(pytest.mark.skip(reason=f"needs {count} CUDA device(s)"))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(model_folder())


@pytest.fixture
def make_pipeline() -> Iterator[MakePipeline]:
    """Make pipelines over the embedded model's tokenizer and a scripted engine."""
    pipelines: list[Pipeline] = []

    def make(
        script: Script,
        *,
        is_random: bool = False,
        template: ChatTemplateConfig | None = None,
        pictures: Mapping[str, Any] = MappingProxyType({}),
        **options: object,
    ) -> tuple[Pipeline, ScriptedClient]:
        model = replace(load_model_config(model_folder()), is_random=is_random)
        resolved = resolve(EngineConfig.from_options(options), model, DeviceConfig("cpu"))
        client = ScriptedClient(script)
        checkpoint = Checkpoint(model_folder(), model)
        builder = create_builder(checkpoint.folder, checkpoint.model, template, **pictures)
        pipelines.append(Pipeline(Engine(client, resolved), builder))
        return pipelines[-1], client

    yield make
    for pipeline in pipelines:
        pipeline.close()
