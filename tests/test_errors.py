import inspect
import re

import pytest

from tilewise import errors
from tilewise.errors import ConfigError, EngineError, InputError, TilewiseError

ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, TilewiseError)]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn: dict[str, tuple[int, str, str]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([│├└─ ]*)(\w+Error) +(\d{3}) (\w+)", line)
        if match:
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            drawn[match[2]] = (int(match[3]), match[4], path[-2] if depth else "Exception")
    assert drawn == {kind.__name__: (kind.status, kind.code, kind.__base__.__name__) for kind in ALL}


def test_codes_are_unique_and_statuses_are_errors() -> None:
    assert len({kind.code for kind in ALL}) == len(ALL)
    assert all(400 <= kind.status < 600 for kind in ALL)


@pytest.mark.parametrize("kind", ALL)
def test_an_error_keeps_its_text_and_the_field_it_names(kind: type[TilewiseError]) -> None:
    error = kind("Too long.", param="prompt")
    assert (str(error), error.param) == ("Too long.", "prompt")
    assert kind("Too long.").param is None


def test_what_the_caller_can_mend_is_told_apart_from_what_broke() -> None:
    assert InputError.status == ConfigError.status == 400
    assert EngineError.status == 500
