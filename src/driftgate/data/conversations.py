"""Conversations of a prompt file."""

from typing import Any

from ..errors import InputError

ROLES = ("system", "user", "assistant")


def parse_conversation(where: str, column: str, turns: Any) -> tuple[tuple[tuple[str, str], ...], str | None]:
    """(role, content) of each message up to the last user's, and the assistant's answer to it, None without one.
    turns: a list of objects with role and content. Raises InputError that says where."""
    if not isinstance(turns, list) or not all(is_message(turn) for turn in turns):
        raise InputError(
            f"{where}: {column!r} must be a list of objects such as "
            f'{{"role": "user", "content": "..."}} with the roles {", ".join(ROLES)} and a text each; '
            f"tools, images and other parts are not supported"
        )
    messages = tuple((turn["role"], turn["content"]) for turn in turns)
    reference = messages[-1][1] if messages and messages[-1][0] == "assistant" else None
    messages = messages if reference is None else messages[:-1]
    if not messages or messages[-1][0] != "user":
        raise InputError(
            f"{where}: {column!r} must end with the user's message, or with the assistant's answer to it; the next "
            f"turn is the student's to write"
        )
    return messages, reference


def is_message(turn: Any) -> bool:
    """Whether this is a message of text; one that calls a tool is not."""
    if not isinstance(turn, dict) or turn.get("tool_calls"):
        return False
    return turn.get("role") in ROLES and isinstance(turn.get("content"), str)
