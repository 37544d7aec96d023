"""Compiles the forms of answers over one checkpoint's tokenizer, which is read when it is first needed."""

from contextlib import suppress
from functools import cached_property
from pathlib import Path

from tilewise.errors import TilewiseError
from tilewise.inputs.text.grammar import Guide, create_guide, wrap_tokenizer
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer


class GuideCompiler:
    """One thread at a time."""

    def __init__(self, folder: Path, num_rows: int) -> None:
        """Read nothing yet; the model has `num_rows` ids."""
        self._folder = folder
        self._num_rows = num_rows

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self._folder, self._num_rows)

    def warm_up(self) -> None:
        """Do what the first form would wait for.

        With 92,553 tokens that takes 0.3 s, with Qwen's 151,657 some 0.8 s, in which no other thread runs. `compile`
        refuses a folder without a tokenizer.
        """
        with suppress(TilewiseError):
            wrap_tokenizer(self._tokenizer)

    def compile(self, response_format: str) -> Guide:
        """Compile a form that `check_format` has passed; other threads run meanwhile.

        Raises:
            EngineError: it does not compile.
        """
        return create_guide(response_format, self._tokenizer)
