"""Messages as text, for a line of a trace."""

from __future__ import annotations

from enum import Enum
from typing import Any

from dstore.protocol.messages import Large, Message, Stored

SHORT_BYTES = 8
"""Bytes of a value that is shown in full."""
HIDDEN = {
    "epoch",
    "nonce",
    "publisher",
    "label",
    "lease",
    "text",
    "wait",
    "value_limit",
    "large_from",
}
"""Fields of messages that are not shown."""


def short(message: Message) -> str:
    """A message on one line."""
    fields = (f"{name}={_value(value)}" for name, value in _shown(message))
    return f"{type(message).__name__}({', '.join(fields)})"


def _shown(message: Any) -> list[tuple[str, Any]]:
    pairs = zip(message._fields, message)
    return [(name, value) for name, value in pairs if name not in HIDDEN]


def _value(value: Any) -> str:
    if isinstance(value, Stored):
        body = value.body
        return f"large {value.token.hex()[:4]}" if isinstance(body, Large) else _text(body)
    if isinstance(value, (bytes, memoryview)):
        return _text(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if hasattr(value, "_fields"):
        return " ".join(_value(part) for _, part in _shown(value))
    return str(value)


def _text(raw: bytes | memoryview) -> str:
    return bytes(raw).decode(errors="replace") if len(raw) <= SHORT_BYTES else bytes(raw[:2]).hex()
