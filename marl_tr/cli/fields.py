"""What a setting may be, in words."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["allowed"]

_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_PLURALS = {"whole number": "whole numbers", "number": "numbers"}


def allowed(field: FieldInfo) -> str:
    """Type and range of a setting: ``whole number >= 1``, ``number in (0, 1], or empty``, ``gru or mlp``.

    A square bracket of a range includes the end, a round one leaves it out. What has no words here is shown as
    Python shows it.
    """
    text, empty = _type(field.annotation)
    low = high = ""
    for constraint in field.metadata:
        match constraint:
            case annotated_types.Ge(ge=value):
                low = f"[{value}"
            case annotated_types.Gt(gt=value):
                low = f"({value}"
            case annotated_types.Le(le=value):
                high = f"{value}]"
            case annotated_types.Lt(lt=value):
                high = f"{value})"
    if low and high:
        text += f" in {low}, {high}"
    elif low:
        text += f" {'>=' if low[0] == '[' else '>'} {low[1:]}"
    elif high:
        text += f" {'<=' if high[-1] == ']' else '<'} {high[:-1]}"
    return f"{text}, or empty" if empty else text


def _type(annotation: Any) -> tuple[str, bool]:
    """A type in words, and whether the setting may be left empty."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(map(str, arguments)), False
    if origin in (types.UnionType, typing.Union):
        kinds = [_type(argument)[0] for argument in arguments if argument is not type(None)]
        return " or ".join(dict.fromkeys(kinds)), type(None) in arguments
    if origin in (list, tuple):
        inner = _type(arguments[0])[0] if arguments else "anything"
        return f"list of {_PLURALS.get(inner, inner)}", False
    if origin is dict or annotation is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping", False
    if annotation in _WORDS:
        return _WORDS[annotation], False
    return str(getattr(annotation, "__name__", annotation)), False
