"""config.json of either layout to a `ModelConfig`: the architecture that it names chooses its reader."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tilewise.checkpoint.hf_config import internvl, internvl_chat
from tilewise.checkpoint.hf_config.language_models import LANGUAGE_MODELS
from tilewise.checkpoint.hf_config.section import Section
from tilewise.checkpoint.json_file import load_json
from tilewise.config import ModelConfig


@dataclass(frozen=True, slots=True)
class _Layout:
    """The `model_type` that may stand for the class, what reads its config.json, and its language models."""

    model_type: str
    read: Callable[[Section, Path], ModelConfig]
    language_models: tuple[str, ...]


_LAYOUTS = {
    internvl_chat.ARCHITECTURE: _Layout("internvl_chat", internvl_chat.read_model, LANGUAGE_MODELS),
    internvl.ARCHITECTURE: _Layout("internvl", internvl.read_model, internvl.LANGUAGE_MODELS),
}
# Architecture and language model of the checkpoints that can be served, as config.json names them.
SERVED = tuple((name, decoder) for name, layout in _LAYOUTS.items() for decoder in layout.language_models)


def load_model_config(folder: Path) -> ModelConfig:
    """Read `folder`/config.json, and beside it what its layout keeps elsewhere.

    Raises:
        CheckpointError: a file is missing or malformed; the message names file and field.
        UnsupportedModelError: the model is of an architecture or flavour outside the family.
    """
    top = Section("config.json: ", load_json(folder / "config.json"))
    architecture = top.architecture({name: layout.model_type for name, layout in _LAYOUTS.items()})
    return _LAYOUTS[architecture].read(top, folder)
