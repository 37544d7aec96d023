"""The language models that can be served, by the names that config.json gives them, and whether a head is tied."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from tilewise.checkpoint.hf_config import internlm2, qwen2, qwen3
from tilewise.checkpoint.hf_config.not_yet import check_language_model
from tilewise.checkpoint.hf_config.section import Section
from tilewise.config import DecoderConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _LanguageModel:
    """The `model_type` that may stand for the class, and what reads its section."""

    model_type: str
    read: Callable[[Section], DecoderConfig]


_LANGUAGE_MODELS = {
    "InternLM2ForCausalLM": _LanguageModel("internlm2", internlm2.read_decoder),
    "Qwen2ForCausalLM": _LanguageModel("qwen2", qwen2.read_decoder),
    "Qwen3ForCausalLM": _LanguageModel("qwen3", qwen3.read_decoder),
}
LANGUAGE_MODELS = tuple(_LANGUAGE_MODELS)
_HEADS = frozenset({"lm_head.weight", "language_model.lm_head.weight", "language_model.output.weight"})


def read_language_model(section: Section, supported: Iterable[str] = LANGUAGE_MODELS) -> DecoderConfig:
    """Read the section by the class that it names, which must be one of those `supported`."""
    check_language_model(section, supported)
    model_types = {name: _LANGUAGE_MODELS[name].model_type for name in supported}
    return _LANGUAGE_MODELS[section.architecture(model_types)].read(section)


def tie_head(decoder: DecoderConfig, is_asked: bool, tensor_names: frozenset[str]) -> DecoderConfig:
    """Tie the head to the embedding where config.json asks for it and the weights hold no head.

    A head in the file is used whatever config.json says. Where there are no weights to look at, the head is taken to
    be its own, so that a plan never promises too much; the log then says so.
    """
    if is_asked and not tensor_names:
        logger.info(
            "config.json ties the head to the embedding, which only weights can confirm, and the folder holds none: a "
            "head of its own is counted"
        )
    has_head = not tensor_names or not _HEADS.isdisjoint(tensor_names)
    return replace(decoder, is_head_tied=is_asked and not has_head)
