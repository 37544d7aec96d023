"""Schemas that bound their values, and a judge of answers to them that shares nothing with the grammar."""

import json
import re
from typing import Any

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "犬", "<|im_end|>", None]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 3},
        "is_good": {"type": "boolean"},
    },
    "required": ["name", "age", "kind", "tags", "is_good"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]{1,3}$"}},
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": {"anyOf": [{"type": "null"}, {"const": "x"}]}, "maxItems": 4},
    {**PERSON, "properties": {"b": {"$ref": "#/$defs/tag"}, "a": {"const": "y"}}, "required": ["a"]},
    {"enum": [1, "two", [3], {"four": 4.5}]},
]


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}


def is_valid(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None) -> bool:
    """JSON Schema's meaning, for the keywords above."""
    root = root or schema
    if "$ref" in schema:
        return is_valid(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return any(is_valid(value, option, root) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        # By text, since True == 1.
        return json.dumps(value) in [json.dumps(option) for option in schema.get("enum", [schema.get("const")])]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "null": type(None)}
    if not isinstance(value, kinds[schema["type"]]) or (schema["type"] == "integer" and isinstance(value, bool)):
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        is_complete = set(schema.get("required", [])) <= set(value) <= set(properties)
        return is_complete and all(is_valid(item, properties[key], root) for key, item in value.items())
    if isinstance(value, list):
        is_sized = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return is_sized and all(is_valid(item, schema["items"], root) for item in value)
    if isinstance(value, str):
        return len(value) <= schema.get("maxLength", len(value)) and bool(re.search(schema.get("pattern", ""), value))
    return not isinstance(value, int) or schema.get("minimum", value) <= value <= schema.get("maximum", value)
