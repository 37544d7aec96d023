"""A pipeline over the embedded model's tokenizer and a scripted engine."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from tests.frontends.scripted import MakePipeline, Script, ScriptedClient
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import ChatTemplateConfig, DeviceConfig, EngineConfig, resolve
from tilewise.demo import model_folder
from tilewise.engine.launch import Checkpoint, Engine
from tilewise.frontends.pipeline import Pipeline, create_builder
from tilewise.inputs.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(model_folder())


@pytest.fixture
def make_pipeline() -> Iterator[MakePipeline]:
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
        builder = create_builder(checkpoint, template, **pictures)
        pipelines.append(Pipeline(Engine(client, resolved), builder))
        return pipelines[-1], client

    yield make
    for pipeline in pipelines:
        pipeline.close()
