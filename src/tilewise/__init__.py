"""Tilewise serves the vision-language model InternVL: `pipeline` asks it from Python, `tilewise` from a shell.

Names are imported when first used, so that `import tilewise` costs nothing and brings no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewise.config import ChatTemplateConfig, EngineConfig
    from tilewise.config import EngineConfig as PytorchEngineConfig
    from tilewise.config import EngineConfig as TurbomindEngineConfig
    from tilewise.errors import TilewiseError
    from tilewise.frontends.pipeline import Pipeline, Session, pipeline
    from tilewise.types import GenerationConfig, Response

__version__ = "0.1.0"

__all__ = [
    "ChatTemplateConfig",
    "EngineConfig",
    "GenerationConfig",
    "Pipeline",
    "PytorchEngineConfig",
    "Response",
    "Session",
    "TilewiseError",
    "TurbomindEngineConfig",
    "__version__",
    "pipeline",
]

_HOMES = {
    "ChatTemplateConfig": "tilewise.config:ChatTemplateConfig",
    "EngineConfig": "tilewise.config:EngineConfig",
    "GenerationConfig": "tilewise.types:GenerationConfig",
    "Pipeline": "tilewise.frontends.pipeline:Pipeline",
    "PytorchEngineConfig": "tilewise.config:EngineConfig",
    "Response": "tilewise.types:Response",
    "Session": "tilewise.frontends.pipeline:Session",
    "TilewiseError": "tilewise.errors:TilewiseError",
    "TurbomindEngineConfig": "tilewise.config:EngineConfig",
    "pipeline": "tilewise.frontends.pipeline:pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = globals()[name] = getattr(importlib.import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
