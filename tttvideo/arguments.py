"""From YAML and command-line words to nested frozen dataclasses; every mistake becomes one sentence with its key.

Defaults, files and words are merged here, in this order, into one tree of ``Part``: where a setting gets another class
it starts from that class's own defaults. jsonargparse checks and converts single values, and prints the help.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import reprlib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from . import strict_yaml
from .recipes import recipe, recipes
from .serialize import public_name, search_working_directory

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one sentence."""


class Setting(typing.NamedTuple):
    """``key`` is dotted, empty for a whole file; ``source`` names the file, or is empty for the command line."""

    key: str
    value: Any
    source: str = ""


@dataclass
class Part:
    """A dataclass in the making: values, further parts or lists of parts, by field."""

    cls: type
    settings: dict[str, Any]


def read(cls: type[Config], words: Sequence[str], *, prog: str, description: str) -> tuple[Config, str]:
    """A ``cls`` from ``--config FILE`` and ``--a.b value`` words; later ones win.

    Returns:
        The configuration, and the whole of it as YAML text (what ``--print_config`` shows).

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a value of the wrong type, an unreadable file.
        SystemExit: after ``--help``, ``--some.class.help NAME`` and ``--print_config``.
    """
    _show_help(cls, words, prog, description)
    root = _defaults(cls)
    for setting in settings_of([word for word in words if word != "--print_config"]):
        try:
            if setting.key:
                _assign(root, setting.key.split("."), setting.value, setting.key)
            else:
                _fill(root, setting.value, "")
        except ConfigError as error:
            raise ConfigError(f"{error} (in {setting.source})" if setting.source else str(error)) from None
    config = _build(root, "")
    text = to_yaml(config)
    if "--print_config" in words:
        print(text, end="")
        raise SystemExit(0)
    return config, text


def settings_of(words: Sequence[str]) -> list[Setting]:
    """The settings that words give, a ``--config`` file as one of them.

    Raises:
        ConfigError: a word that is no setting, a setting without a value, a file that holds no settings.
    """
    settings, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word[2:3] in ("", "="):
            raise ConfigError(f"unexpected argument {word!r}: settings are given as --key value")
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} needs a value; write --{key} VALUE")
            value = rest.pop(0)
        settings.append(Setting("", _read_file(value), value) if key == "config" else Setting(key, value))
    return settings


def to_yaml(config: Any) -> str:
    """All settings of a configuration; ``read`` makes an equal one of it."""
    import yaml

    return yaml.safe_dump(_plain(config, type(config)), sort_keys=False, allow_unicode=True)


def _read_file(name: str) -> dict[str, Any]:
    path = Path(name)
    if not path.exists() and path.name == name and (packaged := recipe(path.stem if path.suffix == ".yaml" else name)):
        path = packaged
    if path.is_dir():
        raise ConfigError(f"configuration file {name} is a folder; give a YAML file")
    try:
        settings = strict_yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(file.stem for file in recipes()) or "none"
        raise ConfigError(f"configuration file {name} does not exist; the recipes are {names}") from None
    except (UnicodeDecodeError, strict_yaml.NotText):
        raise ConfigError(f"configuration file {name} is not a text file (UTF-8); give a YAML file") from None
    except ValueError as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from None
    if settings is None:
        raise ConfigError(f"configuration file {name} is empty; write settings such as seed: 1, or leave --config out")
    if not isinstance(settings, dict):
        raise ConfigError(f"configuration file {name} holds no settings; write them as key: value, such as seed: 1")
    return settings


def _show_help(cls: type, words: Sequence[str], prog: str, description: str) -> None:
    asked = next((i for i, word in enumerate(words) if word in ("-h", "--help") or word.endswith(".help")), None)
    if asked is None:
        return
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="a YAML file with any of the keys below, or a recipe's name")
    parser.add_class_arguments(cls)
    parser.parse_args(words[asked : asked + (2 if words[asked].endswith(".help") else 1)])


def _defaults(cls: type) -> Part:
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


def _assign(part: Part, path: Sequence[str], value: Any, key: str) -> None:
    """Set the field that ``path`` leads to from ``part``; ``key`` is the whole key, for messages."""
    name, *below = path
    fields = [field.name for field in dataclasses.fields(part.cls)]
    if name not in fields:
        parent = key.removesuffix(".".join(path)).split(".")[:-1]
        raise ConfigError(_unknown(part, ".".join(parent), ".".join([name, *below])))
    if not below:
        hint = _hints(part.cls)[name]
        part.settings[name] = _value(hint, part.settings.get(name), value, key)
        return
    inner = part.settings.get(name)
    if not isinstance(inner, Part):
        above = key.removesuffix("." + ".".join(below))
        raise ConfigError(f"unknown setting {key}: {above} is {_shown(inner)} and has no settings; set {above} first")
    _assign(inner, below, value, key)


def _fill(part: Part, settings: dict[Any, Any], key: str) -> None:
    for name, value in settings.items():
        _assign(part, [str(name)], value, f"{key}.{name}" if key else str(name))


def _value(hint: Any, old: Any, value: Any, key: str) -> Any:
    """What a field holds after ``value`` was given for it: a word, or what YAML made of it."""
    base = _part_type(hint)
    if base is None:
        return _leaf(hint, value, key)
    if isinstance(value, str) and (value[:1] in ("{", "[") or value == "null"):
        value = _yaml(value, key)
    if value is None:
        if type(None) not in _options(hint):
            raise ConfigError(f"{key} must be {_kinds(hint)}, not null")
        return None
    if any(typing.get_origin(option) in (tuple, list) for option in _options(hint)):
        if not isinstance(value, list):
            raise ConfigError(f"{key} must be a list, not {_shown(value)}; write '[{_shown(value).strip(chr(39))}]'")
        return [_value(base, None, item, f"{key}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, dict):
        raise ConfigError(f"{key} must be {_kinds(hint)}, not {_shown(value)}")
    if "class_path" not in value:
        part = old if isinstance(old, Part) else _defaults(base)
        _fill(part, value, key)
        return part
    if stray := sorted(set(map(str, value)) - {"class_path", "init_args"}):
        raise ConfigError(f"unknown setting {key}.{stray[0]}: a class is given by class_path and init_args")
    cls = _find_class(base, value["class_path"], key)
    part = old if isinstance(old, Part) and old.cls is cls else _defaults(cls)
    arguments = value.get("init_args") or {}
    if not isinstance(arguments, dict):
        raise ConfigError(f"{key}.init_args must be settings of {cls.__name__}, not {_shown(arguments)}")
    _fill(part, arguments, key)
    return part


def _leaf(hint: Any, value: Any, key: str) -> Any:
    """A single value, converted by jsonargparse: words such as ``1e-4``, ``null`` and ``[1, 2]`` are read as YAML."""
    from jsonargparse import ArgumentError

    options = _options(hint)
    lists = [option for option in options if typing.get_origin(option) in (tuple, list)]
    if value == "" and options == (str, type(None)):  # --out=$FOLDER, which is not set: the present folder
        raise ConfigError(f"{key} must not be empty; leave it out, or write null")
    items: Any = value
    if lists and isinstance(value, str) and value != "null" and value[:1] not in ("[", "("):
        items = [item.strip() for item in value.split(",") if item.strip()]
    try:
        converted = _checker(hint).parse_object({"value": items}, defaults=False).value
    except ArgumentError:
        converted = None
    if converted is None and (type(None) not in options or value not in (None, "null")):
        kinds, example = _kinds(hint), ""
        if lists:  # the example has commas: brackets are a pattern to a shell
            of = typing.get_args(lists[0])
            kinds = f"a list of {len(of)}" if Ellipsis not in of and typing.get_origin(lists[0]) is tuple else "a list"
            kinds += " or null" * (type(None) in options)
            example = "; write " + ",".join([{int: "32", float: "0.5"}.get(of[0], "name")] * max(len(of), 2))
        raise ConfigError(f"{key} must be {kinds}, not {_shown(value)}{example}")
    return converted


@functools.cache
def _checker(hint: Any) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def _find_class(base: type, path: Any, key: str) -> type:
    """A subclass of ``base`` by its short name, or by its import path."""
    by_name = {cls.__name__: cls for cls in _concrete(base)}
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


def _build(part: Any, key: str) -> Any:
    if isinstance(part, list):
        return tuple(_build(item, f"{key}[{i}]") for i, item in enumerate(part))
    if not isinstance(part, Part):
        return part
    values = {name: _build(value, f"{key}.{name}" if key else name) for name, value in part.settings.items()}
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
        hints = _hints(type(value))
        settings = {f.name: _plain(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)}
        base = _part_type(hint)
        if base is None or not _exchangeable(base):
            return settings
        path = public_name(f"{type(value).__module__}.{type(value).__qualname__}")
        return {"class_path": path, "init_args": settings}
    return [_plain(item, hint) for item in value] if isinstance(value, (list, tuple)) else value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _part_type(hint: Any) -> type | None:
    """The dataclass in a field's type, alone, in a union or in a list; None for plain values."""
    for option in _options(hint):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option
        if typing.get_origin(option) in (tuple, list):
            return next((part for item in typing.get_args(option) if (part := _part_type(item))), None)
    return None


def _exchangeable(base: type) -> bool:
    return inspect.isabstract(base) or bool(base.__subclasses__())


def _concrete(base: type) -> Iterator[type]:
    """``base`` and its subclasses that are imported, without abstract ones."""
    if not inspect.isabstract(base) and dataclasses.is_dataclass(base):
        yield base
    for cls in base.__subclasses__():
        yield from _concrete(cls)


def _kinds(hint: Any) -> str:
    """``float``, ``auto or null``, ``one of 'cosine', 'step'``."""
    options = _options(hint)
    kinds = []
    for option in options:
        if typing.get_origin(option) is Literal:
            values = typing.get_args(option)
            several = len(values) > 1 or len(options) == 1
            kinds.append(f"one of {', '.join(map(repr, values))}" if several else str(values[0]))
        elif option is type(None):
            kinds.append("null")
        elif typing.get_origin(option) in (tuple, list):
            kinds.append("a list")
        elif dataclasses.is_dataclass(option):
            kinds.append(f"one of {', '.join(sorted(cls.__name__ for cls in _concrete(option)))}")
        else:
            kinds.append(getattr(option, "__name__", str(option)))
    return " or ".join(kinds)


def _shown(value: Any) -> str:
    """A value as a message can hold it: aliases of a YAML file can make it longer than the memory."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlist = 4, 200, 200, 8
    return "null" if value is None else short.repr(value)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _yaml(word: str, key: str) -> Any:
    try:
        return strict_yaml.load(word)
    except ValueError as error:
        raise ConfigError(f"{key}: {_shown(word)} is not valid YAML: {error}") from None


def _unknown(part: Part, parent: str, name: str) -> str:
    """What to say of a key that ``part``, which lies at ``parent``, does not have."""
    key = f"{parent}.{name}" if parent else name
    if name.split(".")[0] in ("class_path", "init_args"):  # as YAML has it
        return f"unknown setting {key}: on the command line write --{parent} CLASS, and --{parent}.SETTING VALUE"
    valid = _keys(part)
    if any(_exchangeable(base) for base in part.cls.__mro__[1:-1] if dataclasses.is_dataclass(base)):
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
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if not close:  # the right name in the wrong group, or without one
        by_end = {key.rsplit(".", 1)[-1]: key for key in reversed(valid)}
        close = [by_end[end] for end in difflib.get_close_matches(last, list(by_end), n=1, cutoff=0.6)]
    if close:
        return f"; did you mean {(parent + '.' if parent else '') + close[0]!r}?"
    return f"; valid ones are {', '.join(sorted(key for key in valid if '.' not in key))}"
