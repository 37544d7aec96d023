"""The chat as gradio keeps it, as the conversation that the API takes."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

# On what went wrong, which is no part of the conversation; in metadata, where no answer can write.
FAILED = {"id": "failed"}
Turn = Mapping[str, Any]


def as_list(content: Any) -> list[Any]:
    """A message's content, which gradio gives as a list or as its only item."""
    return cast(list[Any], content) if isinstance(content, list) else [content]


def read_turns(
    history: Sequence[Turn], message: Turn | str, system: str = "", max_tiles: int | None = None
) -> list[dict[str, Any]]:
    """The history that gradio keeps, and the new message, as the API's: paths for pictures, before their text.

    A question that got no answer, because it failed or was stopped at once, is left out.
    """
    cut = {} if max_tiles is None else {"max_dynamic_patch": max_tiles}
    new = {"text": message} if isinstance(message, str) else message
    files = [{"path": file} if isinstance(file, str) else file for file in new.get("files") or ()]
    turns: list[dict[str, Any]] = [{"role": "system", "content": system}] if system.strip() else []
    paths: list[str] = []
    texts: list[str] = []
    for turn in (*history, {"role": "user", "content": [*files, new.get("text") or ""]}, {"role": "assistant"}):
        if turn["role"] == "assistant":
            said = "".join(_read_text(item) for item in as_list(turn.get("content", "")))
            metadata = cast(dict[str, Any], turn.get("metadata") or {})
            answer = "" if metadata.get("id") == FAILED["id"] else said
            pictures = [{"type": "image_url", "image_url": {"url": path, **cut}} for path in paths]
            question = [*pictures, *({"type": "text", "text": text} for text in texts if text)]
            if answer or "content" not in turn:
                turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            paths, texts = [], []
            continue
        for item in as_list(turn["content"]):
            if isinstance(item, str) or item.get("type") == "text":
                texts.append(_read_text(item))
            else:
                paths.append((item.get("file") or item)["path"])
    return turns[:-1]


def _read_text(item: Any) -> str:
    return item if isinstance(item, str) else item.get("text", "")
