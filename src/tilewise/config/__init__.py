"""What a model is and how an engine runs it: frozen values, resolved once into new ones.

Here: facts of a checkpoint (`model`), a user's wish (`engine`), and both with no choice left open (`resolve`).
Not here: files, devices, flags of the command line.
"""

from tilewise.config.engine import (
    Allowed,
    ChatTemplateConfig,
    EngineConfig,
    PytorchEngineConfig,
    TurbomindEngineConfig,
    check_fields,
    read_log_level,
)
from tilewise.config.model import (
    DTYPE_BYTES,
    DecoderConfig,
    LayoutName,
    ModelConfig,
    NormType,
    RopeScaling,
    VisionConfig,
)
from tilewise.config.resolve import MIB, DeviceConfig, GraphSizes, ResolvedConfig, resolve

__all__ = [
    "DTYPE_BYTES",
    "MIB",
    "Allowed",
    "ChatTemplateConfig",
    "DecoderConfig",
    "DeviceConfig",
    "EngineConfig",
    "GraphSizes",
    "LayoutName",
    "ModelConfig",
    "NormType",
    "PytorchEngineConfig",
    "ResolvedConfig",
    "RopeScaling",
    "TurbomindEngineConfig",
    "VisionConfig",
    "check_fields",
    "read_log_level",
    "resolve",
]
