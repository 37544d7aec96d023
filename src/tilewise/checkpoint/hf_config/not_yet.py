"""Members of the family that cannot be served yet: refused by name, before any weight is touched."""

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
        f"{section.unsupported(key, ', '.join(served))} {name}, as in {releases}, is not served yet; tilewise list "
        "names the checkpoints that are.",
        param=key,
    )
