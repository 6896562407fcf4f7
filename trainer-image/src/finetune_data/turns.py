"""Parse one message of a conversation: role, content, and whether it is trained. Called by the formats."""

from __future__ import annotations

import difflib
from collections import Counter

from . import tools
from .fields import as_list, as_object, as_text, optional_text
from .jsonl import json_type
from .problems import InvalidRow
from .rows import Json, Message, Role

NO_IMAGES = "images are not supported, only text models are; remove the image or the row"

_ROLES = {role.value: role for role in Role}
_IMAGE_PARTS = {"image", "image_url", "input_image"}
_DEPRECATED = {"function_call": "tool_calls"}
_REASONING = ("reasoning", "reasoning_content", "thinking")
_SIMPLE = {"role", "content"}
_USED = {*_SIMPLE, "weight", "train", "tool_calls", "tool_call_id", "name", *_REASONING}


def conversation(value: Json, ignored: Counter[str]) -> tuple[Message, ...]:
    """The messages of a row. Raises InvalidRow for the first invalid one."""
    found = as_list(value, "messages")
    if not found:
        raise InvalidRow("messages is empty; write the conversation, or remove the row")
    return tuple(_message(message, f"messages[{i}]", ignored) for i, message in enumerate(found))


def _message(value: Json, where: str, ignored: Counter[str]) -> Message:
    message = as_object(value, where)
    role = _role(message.get("role"), where)
    if message.keys() <= _SIMPLE:  # the common case; this shortcut saves a second per half a million messages
        trainable = role is Role.ASSISTANT
        return Message(role, _content(message.get("content"), role, where, needed=trainable), trainable)
    _check_keys(message, where, ignored)
    return _message_with_options(message, role, where)


def _message_with_options(message: dict[str, Json], role: Role, where: str) -> Message:
    trainable = _trainable(message, role, where)
    calls = tools.calls(as_list(message.get("tool_calls"), f"{where}.tool_calls"), f"{where}.tool_calls")
    if calls and role is not Role.ASSISTANT:
        raise InvalidRow(
            f"{where}.tool_calls is allowed for the role assistant only, not {role.value}; correct the role"
        )
    return Message(
        role,
        _content(message.get("content"), role, where, needed=trainable and not calls),
        trainable,
        _reasoning(message, where),
        calls,
        _call_id(message.get("tool_call_id"), where),
        optional_text(message.get("name"), f"{where}.name"),
    )


def _check_keys(message: dict[str, Json], where: str, ignored: Counter[str]) -> None:
    for key, value in message.items():
        if key in _USED or value is None:
            continue
        if key in _DEPRECATED:
            raise InvalidRow(f"{where}.{key} is deprecated; write {_DEPRECATED[key]}")
        if key in ("images", *_IMAGE_PARTS) and value:
            raise InvalidRow(f"{where}.{key}: {NO_IMAGES}")
        if key == "raw_content":
            as_text(value, f"{where}.{key}")
        ignored[f"messages[].{key}"] += 1


def _role(value: Json, where: str) -> Role:
    role = _ROLES.get(value) if isinstance(value, str) else None
    if role is not None:
        return role
    if value is None:
        raise InvalidRow(f"{where}.role is missing; write one of {', '.join(_ROLES)}")
    name = as_text(value, f"{where}.role")
    if name == "function":
        raise InvalidRow(f"{where}.role 'function' is deprecated; write 'tool'")
    near = difflib.get_close_matches(name.strip().lower(), _ROLES, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}?" if near else f"write one of {', '.join(_ROLES)}"
    raise InvalidRow(f"{where}.role {name!r} is unknown; {meant}")


def _trainable(message: dict[str, Json], role: Role, where: str) -> bool:
    weight, train = message.get("weight"), message.get("train")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise InvalidRow(f"{where}.weight is {weight!r}; write 1 to train the message or 0 to exclude it")
    if train is not None and not isinstance(train, bool):
        raise InvalidRow(f"{where}.train is {json_type(train)}; write true or false")
    if weight is not None and train is not None and bool(weight) != train:
        raise InvalidRow(f"{where}.weight and {where}.train contradict each other; keep one")
    requested = train if weight is None else bool(weight)
    if requested and role is not Role.ASSISTANT:
        raise InvalidRow(
            f"{where}: only assistant messages are trained, not {role.value}; remove its weight and train"
        )
    return role is Role.ASSISTANT and requested is not False


def _content(value: Json, role: Role, where: str, *, needed: bool) -> str | None:
    """The text of a message; `needed` if the message must have text."""
    content = value if value is None or isinstance(value, str) else _text(value, f"{where}.content")
    if needed and not (content or "").strip():
        reason = "is an assistant message without text or tool_calls"
        raise InvalidRow(f"{where} {reason}; write its text, or set its weight to 0")
    if content is None and role is not Role.ASSISTANT:
        raise InvalidRow(f"{where}.content is missing; write the {role.value}'s text")
    return content


def _text(value: Json, where: str) -> str:
    if isinstance(value, dict):
        return _part(value, where)
    if isinstance(value, list):
        return "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(value))
    raise InvalidRow(f"{where} is {json_type(value)}; write a string or a list of text parts")


def _part(value: Json, where: str) -> str:
    part = as_object(value, where)
    part_type = part.get("type")
    if part_type in _IMAGE_PARTS:
        raise InvalidRow(f"{where}: {NO_IMAGES}")
    if part_type != "text":
        found = "missing" if part_type is None else repr(part_type)
        raise InvalidRow(f'{where}.type is {found}; only {{"type": "text", "text": ...}} parts are supported')
    return as_text(part.get("text"), f"{where}.text")


def _reasoning(message: dict[str, Json], where: str) -> str | None:
    given = {key: as_text(message[key], f"{where}.{key}") for key in _REASONING if message.get(key) is not None}
    if len(set(given.values())) > 1:
        raise InvalidRow(f"{where}: {' and '.join(given)} differ; keep one")
    return next(iter(given.values()), None)


def _call_id(value: Json, where: str) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return optional_text(value, f"{where}.tool_call_id")
