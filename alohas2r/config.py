"""Configurations: frozen dataclasses of plain values, read from and written to text.

A configuration is a frozen dataclass whose fields are booleans, integers, floats, strings,
literals, another such dataclass, tuples of these, or an optional one of these. It validates
itself in `__post_init__` with `check`, so that no configuration out of range ever exists.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from alohas2r.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
Default = TypeVar("Default")
Item = TypeVar("Item", contravariant=True)
# A configuration as JSON has it: nested dicts, lists, text, numbers.
Plain: TypeAlias = dict[str, Any]
# A type as a field declares it: a class, a union, a literal, a tuple of types.
Hint: TypeAlias = object


class _Changes(dict[str, object]):
    """Fields' new values by name; those of a nested configuration in changes of their own."""


class _Reader(Protocol[Item]):
    """Reads an item as a value of a type, or raises ValueError."""

    def __call__(self, item: Item, hint: Hint, /) -> object:
        """Returns the value."""
        ...


_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_NONE = ("none", "null", "")
_LATER = "later"  # in the metadata of a field
_BRACKETS = {"(": ")", "[": "]"}


def check(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless `condition` holds; for use in `__post_init__`.

    Raises:
      ConfigError: the condition does not hold. The message should name the field, the value
        it had and the values it may have: "discount = 1.5 must lie in (0, 1]."
    """
    if not condition:
        raise ConfigError(message)


def override(config: Config, settings: Iterable[str]) -> Config:
    """Returns a copy of `config` with settings such as "ppo.discount=0.95" applied.

    All settings are applied together, so that fields that constrain each other can be changed
    in one go; of settings with the same key the last one holds.

    Args:
      config: an instance of a frozen dataclass.
      settings: "key=value" each; a dot in the key enters a nested dataclass. The value is read
        by the type of the field: 3, 2e6, 0.5, true, none, swish, 32,32,32 or (32, 32, 32).

    Raises:
      ConfigError: no "=", unknown key, a value of the wrong type or out of range.
    """
    changes = _Changes()
    for setting in settings:
        key, equals, text = setting.partition("=")
        key, text = key.strip(), text.strip()
        if not equals or not key:
            raise ConfigError(f"'{setting}' is no setting; write key=value.")
        _place(config, changes, key, text)
    return _apply(config, changes, "")


def to_dict(config: object) -> Plain:
    """Returns a configuration as plain values for JSON: nested dicts, tuples as lists.

    Raises:
      ConfigError: a field holds a value of another type than it declares.
    """
    plain: Plain = {}
    for name, hint in _types(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            plain[name] = to_dict(value)
            continue
        try:
            plain[name] = _plain(_coerce(value, hint))
        except ValueError:
            raise ConfigError(f"'{name}' = {value!r} must be {_describe(hint)}.") from None
    return plain


def from_dict(cls: type[Config], data: Mapping[str, object], *, partial: bool = False) -> Config:
    """Builds a configuration from what `to_dict` returned.

    Args:
      cls: the dataclass.
      data: plain values, as from JSON.
      partial: whether a key that is missing takes its default; otherwise it is an error.

    Raises:
      ConfigError: unknown or missing key, a value of the wrong type or out of range.
    """
    return _build(cls, data, "", partial)


def flatten(config: object) -> Plain:
    """Returns dotted key -> plain value of every field, in the order of declaration."""
    flat: Plain = {}
    for name, value in to_dict(config).items():
        if isinstance(value, dict):
            inner = flatten(getattr(config, name))
            flat |= {f"{name}.{key}": plain for key, plain in inner.items()}
        else:
            flat[name] = value
    return flat


def difference(old: object, new: object) -> list[str]:
    """Returns "key: old value -> new value" for every field in which two configurations differ."""
    before, after = flatten(old), flatten(new)
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]


def digest(config: object) -> str:
    """Returns a SHA-256 (64 hexadecimal digits) of a configuration's keys and values.

    A field that is `later` counts only where it differs from its default: what was there before keeps its hash.
    """
    text = json.dumps(_counted(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def later(default: Default) -> Default:
    """Declares a field that a configuration did not always have; its default must mean what was so before."""
    return dataclasses.field(default=default, metadata={_LATER: True})


def _counted(config: object) -> Plain:
    """Returns what `digest` covers."""
    counted = to_dict(config)
    for field in _fields(type(config)):
        value = getattr(config, field.name)
        if field.metadata.get(_LATER) and value == field.default:
            del counted[field.name]
        elif dataclasses.is_dataclass(value):
            counted[field.name] = _counted(value)
    return counted


def _fields(cls: type) -> list[dataclasses.Field[object]]:
    return [field for field in dataclasses.fields(cls) if field.init]


@functools.cache
def _types(cls: type) -> dict[str, Hint]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in _fields(cls)}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _place(config: object, changes: _Changes, key: str, text: str) -> None:
    """Parses one setting and puts its value into the nested dict `changes`."""
    path = key.split(".")
    for depth, name in enumerate(path):
        hints = _types(type(config))
        if name not in hints:
            prefix = ".".join(path[:depth])
            choices = [f"{prefix}.{choice}" if prefix else choice for choice in hints]
            if depth == 0 and len(path) == 1:
                choices = list(flatten(config))
            raise ConfigError(f"Unknown configuration key '{key}'.{did_you_mean(key, choices)}")
        value = getattr(config, name)
        last = depth == len(path) - 1
        if dataclasses.is_dataclass(value):
            if last:
                keys = ", ".join(f"{key}.{choice}" for choice in _types(type(value)))
                raise ConfigError(f"'{key}' is a group; set one of its keys: {keys}.")
            inner = changes.setdefault(name, _Changes())
            assert isinstance(inner, _Changes)
            config, changes = value, inner
        elif not last:
            group = ".".join(path[: depth + 1])
            raise ConfigError(f"Unknown configuration key '{key}': '{group}' has no keys in it.")
        else:
            try:
                changes[name] = _parse(text, hints[name])
            except ValueError:
                wanted = _describe(hints[name])
                raise ConfigError(f"{key}={text}: '{key}' must be {wanted}.") from None


def _apply(config: Config, changes: _Changes, prefix: str) -> Config:
    if not changes:
        return config
    values = {}
    for name, change in changes.items():
        old = getattr(config, name)
        nested = isinstance(change, _Changes)
        values[name] = _apply(old, change, f"{prefix}{name}.") if nested else change
    try:
        return dataclasses.replace(config, **values)
    except (ConfigError, ValueError) as error:
        keys = _changed_keys(changes, prefix)
        raise ConfigError(f"{', '.join(keys)}: {error}") from error


def overrides(prefix: str, config: object) -> tuple[str, ...]:
    """Returns "prefix.key=value" for each key of a flat configuration, as `override` takes them; "" for no prefix."""
    assert dataclasses.is_dataclass(config)
    lead = f"{prefix}." if prefix else ""
    return tuple(
        f"{lead}{field.name}={_text(getattr(config, field.name))}"
        for field in dataclasses.fields(config)
    )


def _changed_keys(changes: _Changes, prefix: str) -> list[str]:
    keys: list[str] = []
    for name, change in changes.items():
        if isinstance(change, _Changes):
            keys += _changed_keys(change, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}={_text(change)}")
    return keys


def _text(value: object) -> str:
    """Returns a value as `_parse` reads it."""
    if isinstance(value, tuple):
        inner = ",".join(_text(item) for item in value)
        return f"({inner})"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value)


def _build(cls: type[Config], data: object, prefix: str, partial: bool) -> Config:
    if not isinstance(data, Mapping):
        where = f"'{prefix[:-1]}'" if prefix else "A configuration"
        raise ConfigError(f"{where} must be a table of keys and values, not {data!r}.")
    hints = _types(cls)
    for key in data:
        if key not in hints:
            choices = [f"{prefix}{name}" for name in hints]
            name = f"{prefix}{key}"
            raise ConfigError(f"Unknown configuration key '{name}'.{did_you_mean(name, choices)}")
    values = {}
    for field in _fields(cls):
        name = f"{prefix}{field.name}"
        if field.name not in data:
            required = (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            )
            if required or not partial:
                raise ConfigError(f"The configuration lacks the key '{name}'.")
            continue
        value, hint = data[field.name], hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            values[field.name] = _build(hint, value, f"{name}.", partial)
            continue
        try:
            values[field.name] = _coerce(value, hint)
        except ValueError:
            message = f"'{name}' = {value!r} must be {_describe(hint)}."
            raise ConfigError(message) from None
    try:
        return cls(**values)
    except (ConfigError, ValueError) as error:
        message = f"{prefix[:-1]}: {error}" if prefix else str(error)
        raise ConfigError(message) from error


def _choices(hint: Hint) -> tuple[Hint, ...] | None:
    """Returns the members of a union, or None if `hint` is no union."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = typing.get_args(hint)
        return tuple(sorted(members, key=lambda member: member is str))  # text fits anything
    return None


def _first(reader: _Reader[Item], value: Item, hints: Iterable[Hint]) -> object:
    for hint in hints:
        try:
            return reader(value, hint)
        except ValueError:
            continue
    raise ValueError(value)


def _parse(text: str, hint: Hint) -> object:
    """Reads text as a value of the annotated type, or raises ValueError."""
    if (members := _choices(hint)) is not None:
        return _first(_parse, text, members)
    origin = typing.get_origin(hint)
    if origin is tuple:
        return _items(_parse, _split(text), typing.get_args(hint))
    if origin is typing.Literal:
        for choice in typing.get_args(hint):
            if text == _text(choice):
                return choice
        raise ValueError(text)
    if hint is type(None):
        if text.lower() in _NONE:
            return None
        raise ValueError(text)
    if hint is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise ValueError(text)
    if hint is int:
        try:
            return int(text)
        except ValueError:
            number = float(text)  # 2e6 is an integer too
            if not number.is_integer():
                raise
            return int(number)
    if hint is float:
        return _coerce(float(text), float)
    if hint is str:
        return text
    if dataclasses.is_dataclass(hint):
        raise ValueError(text)
    raise TypeError(f"configurations cannot hold {hint}")


def _coerce(value: object, hint: Hint) -> object:
    """Checks a plain value against the annotated type, or raises ValueError."""
    if (members := _choices(hint)) is not None:
        if isinstance(value, str) and str in members:  # which a table is not
            return value
        return _first(_coerce, value, members)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(value)
        return _items(_coerce, value, typing.get_args(hint))
    if origin is typing.Literal:
        for choice in typing.get_args(hint):
            if type(value) is type(choice) and value == choice:
                return choice
        raise ValueError(value)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(value)
        if not math.isfinite(value):
            raise ValueError(value)
        return float(value) + 0.0  # -0.0 and 0.0 are one value, and have one digest
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, value, "", False)  # pyright: ignore[reportArgumentType]
    if hint in (bool, int, str, type(None)):
        if type(value) is not hint:
            raise ValueError(value)
        return value
    raise TypeError(f"configurations cannot hold {hint}")


def _items(
    reader: _Reader[Item], items: Sequence[Item], hints: tuple[Hint, ...]
) -> tuple[object, ...]:
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(items)
    if len(items) != len(hints):
        raise ValueError(items)
    return tuple(reader(item, hint) for item, hint in zip(items, hints, strict=True))


def _split(text: str) -> list[str]:
    """Splits "(a, b), c" or "[(a, b), c]" at its outermost commas."""
    text = text.strip()
    if text[:1] in _BRACKETS and _closing(text) == len(text) - 1:
        text = text[1:-1].strip()
    parts = outer_parts(text)
    return parts if parts[-1] else parts[:-1]  # a trailing comma is allowed: (32,)


def outer_parts(text: str) -> list[str]:
    """Returns the parts between those commas that no brackets enclose; an empty text is one empty part."""
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter in _BRACKETS) - (letter in _BRACKETS.values())
        if letter == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


def _closing(text: str) -> int:
    """Returns where the bracket that opens `text` closes, or -1."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter in _BRACKETS) - (letter in _BRACKETS.values())
        if depth == 0:
            return position if letter == _BRACKETS[text[0]] else -1
    return -1


def _describe(hint: Hint) -> str:
    """Returns an annotated type in words."""
    if (members := _choices(hint)) is not None:
        members = sorted(members, key=lambda member: member is type(None))
        return " or ".join(_describe(member) for member in members)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(_text(choice) for choice in typing.get_args(hint))
    if origin is tuple:
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a list such as a,b,c in which each is {_describe(args[0])}"
        return f"a list of {len(args)}: " + ", ".join(_describe(arg) for arg in args)
    if dataclasses.is_dataclass(hint):
        return f"a table of {', '.join(_types(hint))}"
    names: dict[Hint, str] = {
        bool: "true or false",
        int: "an integer",
        float: "a finite number",
        str: "text",
        type(None): "none",
    }
    return names.get(hint, str(hint))
