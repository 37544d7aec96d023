"""The one place that builds an engine and hands a client back.

`find_checkpoint` is cheap and comes first: what is wrong with a model's folder, its tokenizer or a prompt profile
is told before torch is imported and any weight is read.
"""

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tilewise.checkpoint.hf_config import load_model_config
from tilewise.checkpoint.hub import find_model
from tilewise.config import EngineConfig, ModelConfig, ResolvedConfig
from tilewise.engine.client import EngineClient
from tilewise.engine.in_process import InProcessClient
from tilewise.engine.messages import Start
from tilewise.engine.process_client import ProcessClient

# What finds a checkpoint means nothing to the process that gets a folder.
_FINDING = ("download_dir", "revision")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a model lies and what its config.json says; no weight is read yet."""

    folder: Path
    model: ModelConfig


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine: the client of it, and what was resolved for it."""

    client: EngineClient
    resolved: ResolvedConfig


def find_checkpoint(model: str | None, config: EngineConfig) -> Checkpoint:
    """Find the model (None: the embedded one), downloading it where needed, and read its config.json.

    Raises:
        CheckpointError: the model cannot be found or served.
    """
    is_real = config.load_format != "dummy"
    folder = find_model(model, revision=config.revision, download_dir=config.download_dir, has_weights=is_real)
    return Checkpoint(folder, load_model_config(folder))


def launch_engine(
    checkpoint: Checkpoint, config: EngineConfig, *, num_tokens: int | None, in_process: bool = True
) -> Engine:
    """Load a model and start its engine: on a thread here, or in a process of its own.

    `num_tokens` is how many ids the tokenizer has; rows of the model's head beyond them are never sampled. None is
    the whole vocabulary.

    Raises:
        CheckpointError: the model cannot be served.
        ConfigError: the configuration contradicts the model or the device.
        CapacityError: the device is too small.
        EngineError: the engine's process could not start.
    """
    model = checkpoint.model
    if num_tokens is not None:
        model = replace(model, decoder=replace(model.decoder, num_tokens=num_tokens))
    if not in_process:
        options = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in _FINDING}
        log_level = logging.getLogger("tilewise").getEffectiveLevel()
        client = ProcessClient(Start(str(checkpoint.folder), model, options, log_level))
        return Engine(client, client.resolved)
    # torch takes seconds to import, and is not wanted before the rest is known to be right.
    from tilewise.engine.core import build_core

    core, resolved = build_core(checkpoint.folder, model, config)
    return Engine(InProcessClient(core), resolved)
