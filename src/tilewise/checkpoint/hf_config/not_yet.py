"""Members of the family, and forms of them, that cannot be served yet: refused by name, before a weight is touched."""

from collections.abc import Iterable

from tilewise.catalogue import MODEL_TYPES, find_releases
from tilewise.checkpoint.hf_config.section import Section
from tilewise.errors import UnsupportedModelError


def check_language_model(section: Section, served: Iterable[str]) -> None:
    """Refuse a language model of a release that is not served yet; what else is unknown is the caller's to refuse.

    Raises:
        UnsupportedModelError: names the class, its releases, and the classes that are `served`.
    """
    name = section.name_architecture(MODEL_TYPES)
    if name is None or name not in MODEL_TYPES.values():
        return
    key = "architectures" if section.get("architectures", []) else "model_type"
    releases = ", ".join(release.name for release in find_releases(name))
    raise UnsupportedModelError(
        f"{section.quote(key)} is not served yet ({name}, as in {releases}); {', '.join(served)} are, and tilewise "
        "list names their checkpoints.",
        param=key,
    )


def check_weights(top: Section, *parts: Section) -> None:
    """Refuse weights that are quantised, in whichever section says so, or that adapters change.

    Raises:
        UnsupportedModelError: names the field and the remedy.
    """
    for section in (top, *parts):
        if section.get("quantization_config", None) is not None:
            raise UnsupportedModelError(
                f"{section.quote('quantization_config')}: quantised checkpoints are not served yet; take the one that "
                "it was made from.",
                param="quantization_config",
            )
    for key in ("use_backbone_lora", "use_llm_lora"):
        if top.get(key, 0):
            raise UnsupportedModelError(
                f"{top.quote(key)}: adapters are not served yet; merge them into the weights, and set it to 0.",
                param=key,
            )
