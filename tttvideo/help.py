"""What ``--help`` prints of a dataclass of settings: the words of its docstrings, at the width of the screen."""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from .settings import (
    Part,
    concrete_classes,
    defaults_of,
    exchangeable,
    find_class,
    hints_of,
    kinds_of,
    options_of,
    part_type,
    shortened,
)

COLUMN = 26
"""Where the words on a setting begin."""


@functools.cache
def field_help(cls: type) -> dict[str, str]:
    """The words on each field, from the docstrings of a class and its bases."""
    from docstring_parser import parse

    entries = [entry for base in reversed(cls.__mro__) for entry in parse(base.__doc__ or "").params]
    return {entry.arg_name: _plain_text(entry.description or "").removesuffix(".") for entry in entries}


def command_help(cls: type, prog: str, description: str = "") -> str:
    """The settings of a command, those of its parts in groups."""
    root = defaults_of(cls)
    positional = getattr(cls, "positional", ())
    names = [field.name for field in dataclasses.fields(cls) if field.name not in positional]
    bare = [_bare_name(cls, name) for name in positional]
    required = [f"--{name} {_value_name(hints_of(cls)[name])}" for name in names if name not in root.settings]
    lines = [*_wrapped("usage: " + " ".join([prog, *bare, *required, "[--key value ...]"]), 4), ""]
    lines += [*_wrapped(description or _description(cls)), ""]
    if positional:
        for name, word in zip(positional, bare):
            lines += _entry(word, field_help(cls).get(name, ""))
        lines.append("")
    groups = getattr(cls, "groups", {})
    grouped = [name for group in groups.values() for name in group]
    lines += _fields(root, "", [name for name in names if name not in grouped])
    lines += _entry("--config FILE", "a YAML file with any of these settings, or a recipe's name")
    lines += _entry("--print_config", "print all settings as YAML, as they would be used, and end")
    lines += [line for name in names for line in _group(root.settings.get(name), name, field_help(cls).get(name, ""))]
    for title, group in groups.items():
        lines += ["", f"{title}:", *_fields(root, "", list(group))]
    if any(isinstance(part, Part) for part in root.settings.values()):
        lines += ["", *_wrapped("--KEY.help lists the classes that a setting takes; --KEY.help CLASS, their settings.")]
    return "\n".join(lines)


def class_help(base: type, name: str | None, key: str) -> str:
    """The settings of the class ``name`` that the setting ``key`` may hold, or a list of such classes."""
    if name is None and exchangeable(base):
        rows = sorted(concrete_classes(base), key=lambda cls: cls.__name__)
        return "\n".join([f"--{key} takes:", *(line for cls in rows for line in _entry(cls.__name__, _summary(cls)))])
    cls = base if name is None else find_class(base, name, key)
    part = defaults_of(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    groups = [line for n in names for line in _group(part.settings.get(n), f"{key}.{n}", field_help(cls).get(n, ""))]
    return "\n".join([*_wrapped(_description(cls)), "", *_fields(part, f"{key}.", names), *groups])


def _fields(part: Part, prefix: str, names: list[str]) -> list[str]:
    lines = []
    for name in names:
        hint, value = hints_of(part.cls)[name], part.settings.get(name)
        if isinstance(value, Part) and not exchangeable(_base(hint)):
            continue  # a group of its own
        words = field_help(part.cls).get(name, "")
        if "(default" not in words and value not in (None, "", [], ()) and value is not False:
            words = f"{words} (default: {_default(value)})"
        meta = "CLASS" if part_type(hint) else _value_name(hint, name in getattr(part.cls, "several", ()))
        lines += _entry(f"--{prefix}{name} {meta}".rstrip(), words)
    return lines


def _group(part: Any, key: str, words: str) -> Iterator[str]:
    """The fields of a part that cannot be exchanged, under a title, and those of its parts."""
    if not isinstance(part, Part) or exchangeable(part.cls) or any(exchangeable(b) for b in _bases(part.cls)):
        return
    yield from ("", *_wrapped(f"{key}: {words}".removesuffix(".")))
    names = [field.name for field in dataclasses.fields(part.cls)]
    yield from _fields(part, f"{key}.", names)
    for name in names:
        yield from _group(part.settings.get(name), f"{key}.{name}", field_help(part.cls).get(name, ""))


def _bases(cls: type) -> list[type]:
    return [base for base in cls.__mro__[1:-1] if dataclasses.is_dataclass(base)]


def _base(hint: Any) -> type:
    base = part_type(hint)
    assert base is not None
    return base


def _bare_name(cls: type, name: str) -> str:
    return name.upper() if hints_of(cls)[name] is str else f"{name.upper()}..."


def _value_name(hint: Any, several: bool = False) -> str:
    """What stands for a value: ``N``, ``TEXT``, ``{cosine,step}``; nothing for a flag."""
    option = next(option for option in options_of(hint) if option is not type(None))
    if typing.get_origin(option) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(option))) + "}"
    if typing.get_origin(option) in (tuple, list):
        item = _value_name(typing.get_args(option)[0])
        return f"{item} ..." if several else f"{item},..."
    return {bool: "", int: "N", float: "X", str: "TEXT"}.get(option, kinds_of(option).upper())


def _default(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_default, value))
    if isinstance(value, Part):
        return value.cls.__name__
    return "true" if value is True else f"{value:g}" if isinstance(value, float) else shortened(value).strip("'")


def _entry(name: str, words: str) -> list[str]:
    lines = _wrapped(words, COLUMN, COLUMN)
    if len(name) + 4 > COLUMN:
        return [f"  {name}", *lines]
    return [f"  {name}".ljust(COLUMN) + (lines[0].strip() if lines else ""), *lines[1:]]


def _wrapped(text: str, indent: int = 0, first: int = 0) -> list[str]:
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    return textwrap.wrap(
        text, width, initial_indent=" " * first, subsequent_indent=" " * indent, break_on_hyphens=False
    )


def _description(cls: type) -> str:
    """The docstring up to its list of fields."""
    text = re.split(r"\n\s*(?:Attributes|Args):\n", cls.__doc__ or "")[0]
    return _plain_text(text)


def _summary(cls: type) -> str:
    return _plain_text((cls.__doc__ or "").split("\n\n")[0])


def _plain_text(text: str) -> str:
    return " ".join(text.replace("``", "").replace("`", "").split())
