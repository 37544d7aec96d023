"""A pipeline over the embedded model's tokenizer and a scripted engine."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.frontends.scripted import MakePipeline, Script, ScriptedClient
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DeviceConfig, EngineConfig, resolve
from tilewise.demo import model_folder
from tilewise.engine.launch import Engine
from tilewise.frontends.pipeline import Pipeline
from tilewise.inputs.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(model_folder())


@pytest.fixture
def make_pipeline() -> Iterator[MakePipeline]:
    pipelines: list[Pipeline] = []

    def make(script: Script, *, is_random: bool = False, **options: object) -> tuple[Pipeline, ScriptedClient]:
        model = replace(load_model_config(model_folder()), is_random=is_random)
        resolved = resolve(EngineConfig.from_options(options), model, DeviceConfig("cpu"))
        client = ScriptedClient(script)
        pipelines.append(Pipeline(Engine(client, resolved, model_folder())))
        return pipelines[-1], client

    yield make
    for pipeline in pipelines:
        pipeline.close()
