"""The one place that builds an engine and hands a client back."""

from dataclasses import dataclass
from pathlib import Path

from tilewise.checkpoint.hf_config import load_model_config
from tilewise.checkpoint.hub import find_model
from tilewise.config import EngineConfig, ResolvedConfig
from tilewise.engine.client import EngineClient, InProcessClient


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine: the door to it, what was resolved for it, and where its checkpoint lies."""

    client: EngineClient
    resolved: ResolvedConfig
    folder: Path


def launch_engine(model: str | None, config: EngineConfig) -> Engine:
    """Find the model (None: the embedded one), load it and start its engine in this process.

    Raises:
        CheckpointError: the model cannot be found or served.
        ConfigError: the configuration contradicts the model or the device.
        CapacityError: the device is too small.
    """
    # torch takes seconds to import and is not wanted by whoever only asks for --help.
    from tilewise.engine.core import build_core

    folder = find_model(
        model,
        revision=config.revision,
        download_dir=config.download_dir,
        has_weights=config.load_format != "dummy",
    )
    core, resolved = build_core(folder, load_model_config(folder), config)
    return Engine(InProcessClient(core), resolved, folder)
