"""Settings as a tree, between words and dataclasses: what is given is merged into defaults, then built.

Where a setting gets another class it starts from that class's own defaults. jsonargparse checks and converts single
values; every mistake becomes one sentence with its key.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import strict_yaml
from .plain import public_name, search_working_directory
from .printing import nearest, shortened

FLAG = object()
"""The value of a setting that was named without one."""


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one sentence."""


@dataclass
class Part:
    """A dataclass in the making: values, further parts or lists of parts, by field."""

    cls: type
    settings: dict[str, Any]


def to_yaml(config: Any) -> str:
    """All settings of a configuration, whose own class the reader knows; ``read`` makes an equal one of it."""
    import yaml

    return yaml.safe_dump(_plain(config, None), sort_keys=False, allow_unicode=True)


def defaults_of(cls: type) -> Part:
    settings = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            settings[field.name] = _part_of(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            settings[field.name] = _part_of(field.default_factory())
    return Part(cls, settings)


def _part_of(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return Part(type(value), {f.name: _part_of(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return [_part_of(item) for item in value] if isinstance(value, (list, tuple)) else value


def assign(part: Part, path: Sequence[str], value: Any, key: str) -> None:
    """Set the field that ``path`` leads to from ``part``; ``key`` is the whole key, for messages."""
    name, *below = path
    fields = [field.name for field in dataclasses.fields(part.cls)]
    if name not in fields:
        parent = key.removesuffix(".".join(path)).split(".")[:-1]
        raise ConfigError(_unknown(part, ".".join(parent), ".".join([name, *below])))
    if not below:
        hint = hints_of(part.cls)[name]
        part.settings[name] = _value(hint, part.settings.get(name), value, key)
        return
    inner = part.settings.get(name)
    if not isinstance(inner, Part):
        above = key.removesuffix("." + ".".join(below))
        raise ConfigError(
            f"unknown setting {key}: {above} is {shortened(inner)} and has no settings; set {above} first"
        )
    assign(inner, below, value, key)


def fill(part: Part, settings: dict[Any, Any], key: str) -> None:
    for name, value in settings.items():
        assign(part, [str(name)], value, f"{key}.{name}" if key else str(name))


def _value(hint: Any, old: Any, value: Any, key: str) -> Any:
    """What a field holds after ``value`` was given for it: a word, or what YAML made of it."""
    base = part_type(hint)
    if base is None or value is FLAG:
        return _leaf(hint, value, key)
    if isinstance(value, str) and (value[:1] in ("{", "[") or value == "null"):
        value = _yaml(value, key)
    if value is None:
        if type(None) not in options_of(hint):
            raise ConfigError(f"{key} must be {kinds_of(hint)}, not null")
        return None
    if any(typing.get_origin(option) in (tuple, list) for option in options_of(hint)):
        if not isinstance(value, list):
            raise ConfigError(
                f"{key} must be a list, not {shortened(value)}; write '[{shortened(value).strip(chr(39))}]'"
            )
        return [_value(base, None, item, f"{key}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, dict):
        kinds = kinds_of(hint) if exchangeable(base) else f"settings, such as {dataclasses.fields(base)[0].name}: ..."
        raise ConfigError(f"{key} must be {kinds}, not {shortened(value)}")
    return _filled(base, old, value, key)


def _filled(base: type, old: Any, value: dict[Any, Any], key: str) -> Part:
    """A dataclass with settings of a mapping, which may name another class: ``old``'s where it does not, else its own
    defaults."""
    if "class_path" not in value:
        part = old if isinstance(old, Part) else defaults_of(base)
        fill(part, value, key)
        return part
    if stray := sorted(set(map(str, value)) - {"class_path", "init_args"}):
        raise ConfigError(f"unknown setting {key}.{stray[0]}: a class is given by class_path and init_args")
    cls = find_class(base, value["class_path"], key)
    part = old if isinstance(old, Part) and old.cls is cls else defaults_of(cls)
    arguments = value.get("init_args") or {}
    if not isinstance(arguments, dict):
        raise ConfigError(f"{key}.init_args must be settings of {cls.__name__}, not {shortened(arguments)}")
    fill(part, arguments, key)
    return part


def _leaf(hint: Any, value: Any, key: str) -> Any:
    """A single value, converted by jsonargparse: words such as ``1e-4``, ``null`` and ``[1, 2]`` are read as YAML."""
    from jsonargparse import ArgumentError

    options = options_of(hint)
    if value is FLAG and hint is not bool:
        raise ConfigError(f"--{key} needs a value; write --{key} VALUE")
    lists = [option for option in options if typing.get_origin(option) in (tuple, list)]
    if value == "" and options in ((str,), (str, type(None))):  # --out=$FOLDER, which is not set: the present folder
        raise ConfigError(f"{key} must not be empty")
    items: Any = True if value is FLAG else value
    if lists and isinstance(value, str) and value != "null" and value[:1] not in ("[", "("):
        items = [item.strip() for item in value.split(",") if item.strip()]
    try:
        converted = _checker(hint).parse_object({"value": items}, defaults=False).value
    except ArgumentError:
        converted = None
    if converted is None and (type(None) not in options or value not in (None, "null")):
        kinds, example = _list_and_example(lists[0], type(None) in options) if lists else (kinds_of(hint), "")
        raise ConfigError(f"{key} must be {kinds}, not {shortened(value)}{example}")
    for number in converted if isinstance(converted, (list, tuple)) else [converted]:
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{key} must be a finite number, not {number}")
    return converted


def _list_and_example(hint: Any, optional: bool) -> tuple[str, str]:
    """A list's type in words, and how one is written: with commas, as brackets are a pattern to a shell."""
    of = typing.get_args(hint)
    kinds = f"a list of {len(of)}" if Ellipsis not in of and typing.get_origin(hint) is tuple else "a list"
    items = [{int: "32", float: "0.5"}.get(of[0], "name")] * max(len(of), 2)
    return kinds + " or null" * optional, "; write " + ",".join(items)


@functools.cache
def _checker(hint: Any) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def find_class(base: type, path: Any, key: str) -> type:
    """A subclass of ``base`` by its short name, or by its import path."""
    by_name = {cls.__name__: cls for cls in concrete_classes(base)}
    if isinstance(path, str) and path in by_name:
        return by_name[path]
    names = ", ".join(sorted(by_name))
    module, dot, name = public_name(str(path)).rpartition(".")
    if not dot or module[:1] in ("", "."):
        raise ConfigError(f"{key}: {path!r} is neither one of {names} nor an import path such as mypkg.MyClass")
    if not module.startswith("tttvideo"):
        search_working_directory()
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:  # of a user's own file, whatever is wrong in it
        kind = "" if isinstance(error, (ImportError, AttributeError, ValueError)) else f"{type(error).__name__}: "
        reason = kind + _one_line(error).removesuffix(".")
        raise ConfigError(f"{key}: {path!r} cannot be imported ({reason}); the known ones are {names}") from error
    if not (isinstance(cls, type) and issubclass(cls, base) and dataclasses.is_dataclass(cls)):
        raise ConfigError(
            f"{key}: {path!r} is not a dataclass derived from {base.__name__}; the known ones are {names}"
        )
    return cls


def build(part: Any, key: str) -> Any:
    if isinstance(part, list):
        return tuple(build(item, f"{key}[{i}]") for i, item in enumerate(part))
    if not isinstance(part, Part):
        return part
    values = {name: build(value, f"{key}.{name}" if key else name) for name, value in part.settings.items()}
    for field in dataclasses.fields(part.cls):
        if field.init and field.name not in values:
            whole = f"{key}.{field.name}" if key else field.name
            raise ConfigError(f"{part.cls.__name__} needs {field.name}; set {whole}")
    try:
        return part.cls(**values)
    except (TypeError, ValueError) as error:  # a sentence of the class's own
        raise ConfigError(_one_line(error)) from error


def _plain(value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = hints_of(type(value))
        settings = {f.name: _plain(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)}
        base = part_type(hint)
        if base is None or not exchangeable(base):
            return settings
        path = public_name(f"{type(value).__module__}.{type(value).__qualname__}")
        return {"class_path": path, "init_args": settings}
    return [_plain(item, hint) for item in value] if isinstance(value, (list, tuple)) else value


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def part_type(hint: Any) -> type | None:
    """The dataclass in a field's type, alone, in a union or in a list; None for plain values."""
    for option in options_of(hint):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option
        if typing.get_origin(option) in (tuple, list):
            return next((part for item in typing.get_args(option) if (part := part_type(item))), None)
    return None


def exchangeable(base: type) -> bool:
    return inspect.isabstract(base) or bool(base.__subclasses__())


def concrete_classes(base: type) -> Iterator[type]:
    """``base`` and its subclasses that are imported, without abstract ones."""
    if not inspect.isabstract(base) and dataclasses.is_dataclass(base):
        yield base
    for cls in base.__subclasses__():
        yield from concrete_classes(cls)


def kinds_of(hint: Any) -> str:
    """``float``, ``auto or null``, ``one of 'cosine', 'step'``."""
    options = options_of(hint)
    kinds = []
    for option in options:
        if typing.get_origin(option) is Literal:
            values = list(typing.get_args(option))
            several = len(values) > 1 or len(options) == 1
            kinds.append(f"one of {', '.join(map(repr, values))}" if several else str(values[0]))
        elif option is type(None):
            kinds.append("null")
        elif typing.get_origin(option) in (tuple, list):
            kinds.append("a list")
        elif isinstance(option, type) and dataclasses.is_dataclass(option):
            kinds.append(f"one of {', '.join(sorted(cls.__name__ for cls in concrete_classes(option)))}")
        else:
            kinds.append(getattr(option, "__name__", str(option)))
    return " or ".join(kinds)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _yaml(word: str, key: str) -> Any:
    try:
        return strict_yaml.load(word)
    except ValueError as error:
        raise ConfigError(f"{key}: {shortened(word)} is not valid YAML: {error}") from None


def _unknown(part: Part, parent: str, name: str) -> str:
    """What to say of a key that ``part``, which lies at ``parent``, does not have."""
    key = f"{parent}.{name}" if parent else name
    if name.split(".")[0] in ("class_path", "init_args"):  # as YAML has it
        return f"unknown setting {key}: on the command line write --{parent} CLASS, and --{parent}.SETTING VALUE"
    valid = _keys(part)
    if parent and any(exchangeable(base) for base in part.cls.__mro__[1:-1] if dataclasses.is_dataclass(base)):
        return f"unknown setting {key}: {part.cls.__name__} has no {name!r}{_nearest(name, valid)}"
    return f"unknown setting {key}{_nearest(name, valid, parent)}"


def _keys(part: Part, prefix: str = "") -> list[str]:
    keys = []
    for field in dataclasses.fields(part.cls):
        key, value = prefix + field.name, part.settings.get(field.name)
        keys += [key, *(_keys(value, key + ".") if isinstance(value, Part) else [])]
    return keys


LIKE = {"learning_rate": "lr", "learning-rate": "lr"}
"""What others call a setting, too far from its name here to be found by likeness."""


def _nearest(name: str, valid: list[str], parent: str = "") -> str:
    """``; did you mean 'optimizer.lr'?``, or the valid keys at that level when nothing is close."""
    last = LIKE.get(name.rsplit(".", 1)[-1], name.rsplit(".", 1)[-1])
    close = nearest(name, valid, cutoff=0.6)
    if not close:  # the right name in the wrong group, or without one
        by_end = {key.rsplit(".", 1)[-1]: key for key in reversed(valid)}
        close = by_end.get(nearest(last, by_end, cutoff=0.6) or "")
    if close:
        return f"; did you mean {(parent + '.' if parent else '') + close!r}?"
    return f"; valid ones are {', '.join(sorted(key for key in valid if '.' not in key)) or 'none'}"


def part_at(root: Part, path: Sequence[str], key: str) -> type:
    """The dataclass that the field at ``path`` holds, or the base of those that it may hold.

    Raises:
        ConfigError: if there is no such field, or it holds a plain value.
    """
    part, base = root, None
    for name in path:
        if not isinstance(part, Part) or name not in hints_of(part.cls):
            raise ConfigError(_unknown(root, "", key))
        base, part = part_type(hints_of(part.cls)[name]), part.settings.get(name)
    if base is None:
        raise ConfigError(f"{key} is a single value and has no settings; --help says what it is")
    return base
