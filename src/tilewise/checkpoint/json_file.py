"""Reads the JSON files of a checkpoint: one object each, of bounded size."""

import json
from pathlib import Path
from typing import Any, cast

from tilewise.errors import CheckpointError
from tilewise.files import read_model_file

# The official files are below 10 kB; an index of 100,000 tensors stays below 16 MiB.
_MAX_JSON_BYTES = 16 << 20


def load_json(path: Path) -> dict[str, Any]:
    """Read one JSON object of bounded size.

    Raises:
        CheckpointError: the file is missing, too large, not JSON or not an object.
    """
    content = read_model_file(path, _MAX_JSON_BYTES)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not valid JSON ({error!s:.120}); download it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object, got a {type(data).__name__}.")
    return cast(dict[str, Any], data)
