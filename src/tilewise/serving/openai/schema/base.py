"""What every body has in common: types of fields, unknown fields refused, errors in the API's own names.

A field is honoured, or accepted because it asks for nothing that this server does otherwise, or refused by name.
Every number is bounded here. `null` is a field left out. What messages hold is for `inputs.conversation` to judge.
"""

import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails

from tilewise.errors import InputError
from tilewise.inputs.conversation import Message
from tilewise.types import MAX_WORD_LENGTH

MAX_COUNT = 2**31 - 1
# More keys than any object among the fields may have, its own bounds apart.
MAX_KEYS = 1024
# The fields of all bodies that hold what is said.
_SAID = {"messages", "prompt", "input"}

Word = Annotated[str, Field(min_length=1, max_length=MAX_WORD_LENGTH)]
Text = Annotated[str, Field(min_length=1)]
IdText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Label = Annotated[str, Field(max_length=512)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_COUNT)]


def _check_bool(value: object) -> object:
    if not isinstance(value, bool):  # NOTE: to a Literal, 0 is False
        raise ValueError("must be true or false")
    return value


No = Annotated[Literal[False], BeforeValidator(_check_bool)]
_PART = {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "image_url"]}}}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]}
_ROLES = ("system", "developer", "user", "assistant", "tool")
_ROLE = {"enum": list(_ROLES)}
_MESSAGE: dict[str, Any] = {"type": "object", "required": ["role"], "properties": {"role": _ROLE, "content": _CONTENT}}
Messages = Annotated[
    list[dict[str, Any]],
    Field(
        fail_fast=True,
        min_length=1,
        max_length=4096,
        json_schema_extra={"items": _MESSAGE},
        examples=[[{"role": "user", "content": "What is a tile?"}]],
    ),
]


# Of a value of any size it spells out no more than is shown.
_GIVEN = reprlib.Repr()
_GIVEN.maxstring = _GIVEN.maxlong = 80


class Body(BaseModel):
    """A request's body: unknown fields are refused, types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)
    # Whether such a body is refused unread where the engine has no room.
    asks_for_answer: ClassVar[bool] = False
    # Fields that deeper layers call otherwise; their errors are told in these names.
    api_names: ClassVar[dict[str, str]] = {}

    # Read when a body is checked, which happens off the event loop.
    _messages: tuple[Message, ...] = PrivateAttr(default=())

    @property
    def conversation(self) -> tuple[Message, ...]:
        """What is said, as messages."""
        return self._messages

    def drop_conversation(self) -> None:
        """Let go of what is said, once it is in a request to the engine."""
        self._messages = ()
        for name in _SAID & type(self).model_fields.keys():
            setattr(self, name, None)

    @classmethod
    def read(cls, data: object) -> Self:
        """Check a parsed body.

        Raises:
            InputError: a field is refused; `param` names it.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=False)
        raise _to_input_error(errors)

    @classmethod
    def in_api_names(cls, error: InputError) -> InputError:
        """An error of a deeper layer in the words of the API; a name that is no common word is one in its text too."""
        text = str(error)
        for ours, theirs in cls.api_names.items():
            text = text.replace(ours, theirs) if "_" in ours else text
        return type(error)(text, param=cls.api_names.get(error.param or "", error.param))

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        """Drop them, and refuse at once what the validator would refuse key by key, without a pause for others."""
        if not isinstance(data, dict):
            return data
        given, known = cast(dict[str, Any], data), cls.model_fields
        if len(given) > len(known):
            raise _refuse_field(next(key for key in given if key not in known))
        for key, value in given.items():
            if isinstance(value, dict) and len(cast(dict[str, Any], value)) > MAX_KEYS:
                raise InputError(f"{key:.80} has more than {MAX_KEYS} keys.", param=f"{key:.80}")
        return {key: value for key, value in given.items() if value is not None or key not in known}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        document = handler.resolve_ref_schema(handler(schema))
        fields = document.get("properties", {})
        for name in fields.keys() - set(document.get("required", ())):
            fields[name] = {"anyOf": [fields[name], {"type": "null"}]}
        return document


def read_role(message: dict[str, Any]) -> dict[str, Any]:
    """A client's role as ours: `developer` is OpenAI's newer name for the system, and `tools` comes from `tools`."""
    role = message.get("role")
    if isinstance(role, str) and role not in _ROLES:
        raise InputError(f"Role {role[:80]!r} is unknown; use {', '.join(_ROLES)}.", param="role")
    return {**message, "role": "system"} if role == "developer" else message


def _refuse_field(name: str) -> InputError:
    name = f"{name:.80}"
    return InputError(f"Field {name!r} is not supported here; leave it out.", param=name)


def _to_input_error(errors: Sequence[ErrorDetails]) -> InputError:
    # Report the error of the union member whose type matches.
    first = next((e for e in errors if e["type"] not in ("string_type", "list_type", "dict_type")), errors[0])
    path = ".".join(str(step) for step in first["loc"] if not str(step).startswith(("constrained-", "list[", "dict[")))
    name = f"{path:.80}" or "body"
    if first["type"] == "extra_forbidden":
        return _refuse_field(name)
    given = "" if first["type"] == "missing" else f", got {_GIVEN.repr(first['input']):.80}"
    return InputError(f"{name}: {first['msg']}{given}.", param=name)
