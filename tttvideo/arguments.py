"""From YAML files and command-line words to a dataclass: the one way, for every command.

A command's settings are a frozen dataclass. Class attributes say how they are typed, where it is not --name value:

    positional: ClassVar = ("checkpoint", "videos")  # given without their name, in this order; a list comes last
    several: ClassVar = ("sampling",)                # lists whose items are words of their own, up to the next --key
    repeated: ClassVar = ("metrics",)                # lists of one word for each --key
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from . import strict_yaml
from .help import class_help, command_help
from .recipes import recipe, recipes
from .settings import FLAG, ConfigError, assign, build, defaults_of, fill, hints_of, part_at, to_yaml

__all__ = ["ConfigError", "Setting", "read", "settings_of", "to_yaml"]

Config = TypeVar("Config")


class Setting(NamedTuple):
    """``key`` is dotted, empty for a whole file; ``source`` names the file, or is empty for the command line."""

    key: str
    value: Any
    source: str = ""


def read(cls: type[Config], words: Sequence[str], *, prog: str, description: str = "") -> tuple[Config, str]:
    """A ``cls`` from words: positional ones, ``--a.b value``, and ``--config FILE`` with any of these; later ones win.

    Returns:
        The configuration, and the whole of it as YAML text (what ``--print_config`` shows).

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a value of the wrong type, an unreadable file.
        SystemExit: after ``--help``, ``--some.class.help NAME`` and ``--print_config``.
    """
    _show_help(cls, words, prog, description)
    root = defaults_of(cls)
    settings = settings_of(cls, [word for word in words if word != "--print_config"])
    for number, setting in enumerate(settings, 1):
        try:
            if setting.key:
                assign(root, setting.key.split("."), setting.value, setting.key)
            else:
                fill(root, setting.value, "")
        except ConfigError as error:
            later = [s.key for s in settings[number:] if s.key and setting.key.startswith(f"{s.key}.")]
            hint = f"; give --{later[0]} before it" if later else ""
            raise ConfigError(f"{error} (in {setting.source})" if setting.source else f"{error}{hint}") from None
    positional = getattr(cls, "positional", ())
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        if field.name not in root.settings:
            missing = field.name.upper() if field.name in positional else f"--{field.name}"
            raise ConfigError(f"{prog} needs {missing}; see {prog} --help")
    config = build(root, "")
    text = to_yaml(config)
    if "--print_config" in words:
        print(text, end="")
        raise SystemExit(0)
    return config, text


def settings_of(cls: type, words: Sequence[str]) -> list[Setting]:
    """The settings that words give, a ``--config`` file as one of them.

    Raises:
        ConfigError: a word that is no setting, a setting without a value, a file that holds no settings.
    """
    settings: list[Setting] = []
    bare: list[str] = []
    lists: dict[str, list[str]] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            bare += rest
            break
        if not word.startswith("-") or word == "-":
            bare.append(word)
            continue
        key, equals, value = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if not word.startswith("--") or not key:
            raise _unexpected(cls, word)
        if equals:
            values = [value]
        else:
            values = _values(cls, key, rest)
            del rest[: len(values)]
        if key == "config":
            if not values:
                raise ConfigError("--config needs a value; write --config FILE")
            settings.append(Setting("", _read_file(values[0]), values[0]))
        elif values and key in (*getattr(cls, "several", ()), *getattr(cls, "repeated", ())):
            lists[key] = [*lists.get(key, ()), *values]
            settings.append(Setting(key, lists[key]))
        else:
            settings.append(Setting(*_flag(cls, key)) if not values else Setting(key, values[0]))
    return [*settings, *_positional(cls, bare)]


def _values(cls: type, key: str, rest: Sequence[str]) -> Sequence[str]:
    """The words after ``--key`` that are its value."""
    end = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
    if key in getattr(cls, "several", ()):
        return rest[:end]
    flag = bool in (hints_of(cls).get(key), hints_of(cls).get(key.removeprefix("no_")))
    if end and flag and getattr(cls, "positional", ()) and rest[0].lower() not in ("true", "false"):
        return ()
    return rest[: min(end, 1)]


def _flag(cls: type, key: str) -> tuple[str, Any]:
    """``--key`` without a value."""
    negated = key.removeprefix("no_")
    if negated != key and hints_of(cls).get(negated) is bool:
        return negated, False
    return key, FLAG


def _positional(cls: type, words: Sequence[str]) -> Iterator[Setting]:
    names = list(getattr(cls, "positional", ()))
    for word in words:
        key, equals, value = word.partition("=")
        named = getattr(cls, "named", False)  # NAME=FOLDER is an argument of this command
        if names and not named and equals and key.isidentifier() and not Path(word).exists():
            first = "".join(f"{name.upper()} " for name in names)
            raise ConfigError(f"unexpected argument {word!r}: write {first}--key value ..., such as --{key} {value}")
    single = [name for name in names if hints_of(cls)[name] is str]
    yield from (Setting(name, word) for name, word in zip(single, words))
    further = words[len(single) :]
    if further and len(names) == len(single):
        raise _unexpected(cls, further[0])
    if further:
        yield Setting(names[-1], list(further))


def _unexpected(cls: type, word: str) -> ConfigError:
    if names := getattr(cls, "positional", ()):
        return ConfigError(f"unexpected argument {word!r} beside {' '.join(map(str.upper, names))}")
    return ConfigError(f"unexpected argument {word!r}: settings are given as --key value")


def _show_help(cls: type, words: Sequence[str], prog: str, description: str) -> None:
    for i, word in enumerate(words):
        if word in ("-h", "--help"):
            print(command_help(cls, prog, description))
            raise SystemExit(0)
        if word.startswith("--") and word.endswith(".help"):
            key, name = word.removeprefix("--").removesuffix(".help"), words[i + 1 : i + 2]
            print(class_help(part_at(defaults_of(cls), key.split("."), key), name[0] if name else None, key))
            raise SystemExit(0)


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
