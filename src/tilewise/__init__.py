"""Tilewise serves the vision-language model InternVL: `pipeline` asks it from Python, `tilewise` from a shell.

Names are imported when first used, so that `import tilewise` costs nothing and brings no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewise.config import ChatTemplateConfig, EngineConfig, PytorchEngineConfig, TurbomindEngineConfig
    from tilewise.errors import TilewiseError
    from tilewise.offline.pipeline import Pipeline, pipeline
    from tilewise.offline.session import Session
    from tilewise.types import GenerationConfig, Response

__version__ = "0.1.0"

__all__ = ["ChatTemplateConfig", "EngineConfig", "GenerationConfig", "Pipeline", "PytorchEngineConfig", "Response"]
__all__ += ["Session", "TilewiseError", "TurbomindEngineConfig", "__version__", "pipeline"]

_HOMES = {
    "config": ("ChatTemplateConfig", "EngineConfig", "PytorchEngineConfig", "TurbomindEngineConfig"),
    "errors": ("TilewiseError",),
    "offline.pipeline": ("Pipeline", "Session", "pipeline"),
    "types": ("GenerationConfig", "Response"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"tilewise.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
