"""Conversations as ChatGPT exports them (`conversations.json`): a tree of messages, one path of which is shown.

    {"title": …, "current_node": "c", "mapping": {
        "a": {"parent": null, "message": null},
        "b": {"parent": "a", "message": {
            "author": {"role": "user"}, "content": {"content_type": "text", "parts": ["…"]}}},
        "c": {"parent": "b", "message": …}}}

The path from the last message to the root is the conversation that the user saw; other branches are earlier answers
that were replaced. On this path, the texts of the user and the assistant are kept. Calls of tools and their results,
reasoning and pictures are left out, because the chat templates here cannot render them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_ROLES = ("user", "assistant")


def is_exported(value: object) -> bool:
    """Return whether a JSON value is a conversation as ChatGPT exports it."""
    return isinstance(value, Mapping) and isinstance(value.get("mapping"), Mapping)


def exported_row(value: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a row with `messages` and `title` for `schemas.read_row`; None if the assistant never answers the user."""
    turns: list[dict[str, str]] = []
    for role, text in _texts(value):
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += "\n\n" + text
        elif turns or role == "user":
            turns.append({"role": role, "content": text})
    if turns and turns[-1]["role"] == "user":
        del turns[-1]
    title = value.get("title")
    return {"messages": turns} | ({"title": title} if isinstance(title, str) else {}) if turns else None


def _texts(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the role and the text of each message that is kept."""
    for message in reversed(_path(value)):
        author, content = message.get("author"), message.get("content")
        role = author.get("role") if isinstance(author, Mapping) else None
        is_shown = message.get("recipient") in (None, "all") and not _is_hidden(message)
        if role not in _ROLES or not is_shown or not isinstance(content, Mapping):
            continue
        parts = content.get("parts")
        if content.get("content_type") in ("text", "multimodal_text") and isinstance(parts, list):
            text = "\n".join(part for part in parts if isinstance(part, str)).strip()
            if text:
                yield role, text


def _path(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the messages from the last shown message back to the first."""
    nodes = value["mapping"]
    name = value.get("current_node")
    if not isinstance(name, str) or name not in nodes:  # an old export: the last message is the last node
        name = next(reversed(nodes), None)
    found: list[Mapping[str, Any]] = []
    seen: set[Any] = set()
    while isinstance(name, str) and name in nodes and name not in seen:
        seen.add(name)
        node = nodes[name]
        if not isinstance(node, Mapping):
            break
        if isinstance(node.get("message"), Mapping):
            found.append(node["message"])
        name = node.get("parent")
    return found


def _is_hidden(message: Mapping[str, Any]) -> bool:
    metadata = message.get("metadata")
    return isinstance(metadata, Mapping) and bool(metadata.get("is_visually_hidden_from_conversation"))
