"""The pattern that error messages are held to."""

import re

import pytest

from tests.messages import mentions

MESSAGE = "max_connections=5000 takes 5256 open files;\nlower --max-connections, or raise the limit (ulimit -n)."


@pytest.mark.parametrize(
    "tokens", [(5256,), ("ulimit", "--max-connections", 5000), ("max_connections=5000",), ("(ulimit -n)",)]
)
def test_words_numbers_and_flags_are_found_in_any_order_and_line(tokens: tuple[object, ...]) -> None:
    assert re.search(mentions(*tokens), MESSAGE)


@pytest.mark.parametrize("tokens", [(525,), ("limi",), ("ulimit", "absent"), (256,)])
def test_parts_of_words_and_absent_ones_are_not_found(tokens: tuple[object, ...]) -> None:
    assert not re.search(mentions(*tokens), MESSAGE)
