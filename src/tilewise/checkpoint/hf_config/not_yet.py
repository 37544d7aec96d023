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
    if name is not None and name in MODEL_TYPES.values():
        releases = find_releases(name)
        raise UnsupportedModelError(
            f"config.json: {name}, the language model of {', '.join(release.name for release in releases)}, is not "
            f"served yet; served are {', '.join(served)}, and tilewise list names their checkpoints.",
            param="architectures",
        )
