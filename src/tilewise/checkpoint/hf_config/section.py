"""JSON objects whose fields are read by type; every refusal names file and field."""

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from tilewise.errors import CheckpointError, UnsupportedModelError

_MAX_WIDTH = 1 << 20
MAX_VOCAB = 1 << 24
MAX_LAYERS = 1024
_REQUIRED: Any = object()


def are_names(value: Any) -> bool:
    """Tell whether a value is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in cast(list[Any], value))


def _shown(value: Any) -> str:
    """A value in one short piece: names in a list are shown, other containers (which may be deep) only counted."""
    if are_names(value):
        return f"{', '.join(value)!r:.80}"
    return f"a container of {len(value)}" if type(value) in (list, dict) else f"{value!r:.80}"


class Section:
    """One JSON object whose fields are read by type; every refusal names file and field. null means absent."""

    def __init__(self, path: str, data: Mapping[str, Any]) -> None:
        """`path` is what a refusal puts before a key."""
        self._path = path
        self._data = data

    def error(self, key: str, wanted: str) -> CheckpointError:
        """What to raise where the value of `key` is not `wanted`."""
        return CheckpointError(f"{self._path}{key} must be {wanted}, got {_shown(self._data.get(key))}.", param=key)

    def unsupported(self, key: str, supported: str) -> UnsupportedModelError:
        """What to raise where `key` is well-formed and Tilewise cannot honour it."""
        return UnsupportedModelError(f"{self.quote(key)} is not supported; only {supported}.", param=key)

    def quote(self, key: str) -> str:
        """A field and its value, as a refusal shows them."""
        return f"{self._path}{key}={_shown(self._data.get(key))}"

    def is_null(self, key: str) -> bool:
        """Whether the key is there and says null, for the fields where that is not the default of an absent one."""
        return key in self._data and self._data[key] is None

    def given(self) -> set[str]:
        """The keys that have a value."""
        return {key for key, value in self._data.items() if value is not None}

    def get(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value as it is, or the default where there is none."""
        value = self._data.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise CheckpointError(f"{self._path}{key} is missing.", param=key)
        return default

    def read(self, key: str, default: Any, wanted: str, is_right: Callable[[Any], bool]) -> Any:
        """The value, which must be right; `wanted` says in words what that is."""
        value = self.get(key, default)
        if not is_right(value):
            raise self.error(key, wanted)
        return value

    def section(self, key: str) -> "Section":
        """An object within this one."""
        data = self.read(key, _REQUIRED, "an object", lambda value: type(value) is dict)
        return Section(f"{self._path}{key}.", data)

    def count(self, key: str, default: Any = _REQUIRED, *, low: int = 1, high: int = _MAX_WIDTH) -> int:
        """A whole number in [low, high]."""
        wanted = f"a whole number in [{low}, {high}]"
        return self.read(key, default, wanted, lambda value: type(value) is int and low <= value <= high)

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A positive number."""
        return float(self.read(key, default, "a positive number", lambda n: type(n) in (int, float) and 0 < n < 1e15))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return self.read(key, default, "true or false", lambda value: isinstance(value, bool))

    def word(self, key: str, default: str | None) -> str | None:
        """A string."""
        return self.read(key, default, "a string", lambda value: value is None or isinstance(value, str))

    def choice(self, key: str, default: str, supported: tuple[str, ...]) -> str:
        """A string that must be one of those supported."""
        value = self.word(key, default)
        if value not in supported:
            raise self.unsupported(key, " or ".join(supported))
        return value

    def only(self, key: str, supported: Any) -> None:
        """The one supported value, which is also the default."""
        if self.get(key, supported) != supported:
            raise self.unsupported(key, supported if isinstance(supported, str) else json.dumps(supported))

    def architecture(self, supported: Mapping[str, str]) -> str:
        """The first of `architectures`, or the one that `model_type` stands for (`supported` maps one to the other)."""
        name = self.name_architecture({model_type: name for name, model_type in supported.items()})
        if name is None or name not in supported:
            is_named = self.get("architectures", [])
            raise self.unsupported("architectures" if is_named else "model_type", ", ".join(supported))
        return name

    def name_architecture(self, by_type: Mapping[str, str]) -> str | None:
        """The first of `architectures`, or the one that `by_type` has for `model_type`; None where it has none."""
        names = self.read("architectures", [], "a list of names", are_names)
        return names[0] if names else by_type.get(self.word("model_type", None) or "")
