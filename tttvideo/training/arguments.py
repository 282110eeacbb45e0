"""Command line and YAML -> RunConfig, by jsonargparse; every mistake becomes one sentence that names the
key."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
import typing
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tttvideo.serialize import search_working_directory
from tttvideo.training.config import ConfigError, RunConfig

# what others call it, too far from its name here to be found by likeness
_LEARNING_RATE = {"learning_rate", "learning-rate", "optimizer.learning_rate"}


def parse(argv: Sequence[str] | None = None) -> tuple[RunConfig, str]:
    """Read `--config FILE.yaml` and `--a.b value` overrides.

    Returns:
        The configuration, and the whole of it as YAML text (what `--print_config` would show).

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a value of the wrong type, an unreadable
        file.
        SystemExit: after --help and --print_config.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="train.py",
        description="Train a video model on a folder of videos.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the keys below")
    parser.add_class_arguments(RunConfig)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        files = [_settings(file) for file in namespace_files(words)]
        if _names_own_class([word.partition("=")[2] or word for word in words], files):
            search_working_directory()  # where a user's own `mypkg.MyInner` lives
        words += _other_source_off(words, files)
        with _classes_start_afresh(), _null_stays_null():
            namespace = parser.parse_args(words)
        settings = vars(parser.instantiate(namespace))
        settings.pop("config", None)
        config = RunConfig(**settings)
    except argparse.ArgumentError as error:
        raise ConfigError(_sentence(str(error), parser, namespace_files(words))) from None
    except (TypeError, ValueError) as error:
        # ours from __post_init__ already is a sentence
        raise ConfigError(_one_line(str(error))) from error
    namespace.pop("config", None)
    with warnings.catch_warnings():
        # skip_unset, its successor in jsonargparse 4.49, is not in the oldest version we allow
        warnings.simplefilter("ignore")
        return config, parser.dump(namespace, skip_none=False, skip_validation=True)


@contextmanager
def _classes_start_afresh() -> Iterator[None]:
    """A setting given another class takes that class's own defaults.

    jsonargparse would carry over all settings of the same name: `inner: Conv` would silently keep the
    `expansion: 4` of the `MLP` it replaces, although the default of `Conv` is 1.
    """
    from jsonargparse import _typehints

    def discard(parser: Any, previous: Any, value: Any) -> None:
        if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
            previous["init_args"] = type(previous["init_args"])()

    carry_over = _typehints.discard_init_args_on_class_path_change
    _typehints.discard_init_args_on_class_path_change = discard
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = carry_over


@contextmanager
def _null_stays_null() -> Iterator[None]:
    """`--a.mixer.optimizer.clip null` reaches the innermost class as it was written.

    jsonargparse would read `null` at the outermost class and hand it on to the next as Python writes it, the word
    `None`, which is no number and no null.
    """
    from jsonargparse import _typehints, _util

    read = _util.parse_value_or_config

    def read_all_but_null(value: Any, *args: Any, **options: Any) -> Any:
        found, path = read(value, *args, **options)
        if isinstance(value, _util.NestedArg) and found.val is None:
            return value, path
        return found, path

    _typehints.parse_value_or_config = read_all_but_null  # pyright: ignore[reportPrivateImportUsage]
    try:
        yield
    finally:
        _typehints.parse_value_or_config = read  # pyright: ignore[reportPrivateImportUsage]


def _settings(file: str) -> dict[str, Any]:
    """What a --config file holds. One that holds no settings is refused here, as jsonargparse does not name it."""
    import yaml

    if os.path.isdir(file):
        raise ConfigError(f"configuration file {file} is a folder; give a YAML file")
    if not os.path.isfile(file):  # the parser says that it is not there; a pipe can be read only once
        return {}
    try:
        with open(file, encoding="utf-8") as stream:
            found = yaml.safe_load(stream)
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise ConfigError(f"configuration file {file} is not a text file (UTF-8); give a YAML file") from None
    except yaml.YAMLError:  # the parser says where
        return {}
    if found is None:
        raise ConfigError(f"configuration file {file} is empty; write settings such as seed: 1, or leave --config out")
    if not isinstance(found, dict):
        raise ConfigError(f"configuration file {file} holds no settings; write them as key: value, such as seed: 1")
    return found


def _names_own_class(*values: Any) -> bool:
    """Whether a word of the command line, or a value of the files, may be the import path of a class that is not ours:
    dotted names, the last of them with a capital, as in `mypkg.MyInner`."""
    return any(
        re.fullmatch(r"(?!tttvideo\.)[^\W\d]\w*(\.[^\W\d]\w*)*\.[A-Z]\w*", value)
        if isinstance(value, str)
        else isinstance(value, dict | list) and _names_own_class(*(value.values() if isinstance(value, dict) else value))
        for value in values
    )


def _other_source_off(words: Sequence[str], files: Sequence[dict[str, Any]]) -> list[str]:
    """What to add to the command line so that a list (or root) given there replaces the files' root (or list).

    Otherwise the files' root would silently become the folder that the paths of another list count from. A root
    given beside files that hold both moves that folder, and the list stays.
    """
    given = {
        name
        for i, word in enumerate(words)
        for name in ("root", "list")
        if (word == f"--data.{name}" and words[i + 1 : i + 2] != ["null"])
        or (word.startswith(f"--data.{name}=") and word != f"--data.{name}=null")
    }
    in_files = {name for file in files if isinstance(file.get("data"), dict) for name, v in file["data"].items() if v}
    if given == {"list"} and "root" in in_files:
        return ["--data.root=null"]
    if given == {"root"} and "list" in in_files and "root" not in in_files:
        return ["--data.list=null"]
    return []


def namespace_files(words: Sequence[str]) -> list[str]:
    """The --config files on the command line."""
    files = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--config"]
    return files + [word.removeprefix("--config=") for word in words if word.startswith("--config=")]


def _sentence(message: str, parser: Any, files: list[str]) -> str:
    """jsonargparse's message, which may be several lines and never suggests a key, as one sentence."""
    where = f" (in {files[-1]} or on the command line)" if files else ""

    if "unrecognized arguments" in message:
        word = message.split("unrecognized arguments:", 1)[1].split()[0]
        if not word.startswith("--"):
            return f"unexpected argument {word!r}: settings are given as --key value"
        key = word.removeprefix("--").split("=", 1)[0]
        return f"unknown setting --{key}{_nearest(key, _keys(parser))}"

    keys = re.findall(r"""[Kk]ey ["']([\w.]+)["']""", message)  # from the outermost setting to the one at fault
    classes = re.findall(r"""class_path ['"]([\w.]+)['"]""", message)
    refused = re.findall(r"""Option ['"]([\w.]+)['"] is not accepted""", message)
    if keys and classes and refused:
        name = refused[-1]
        return (
            f"unknown setting {'.'.join([*keys, name])}: {classes[-1].rsplit('.', 1)[-1]} has no {name!r}"
            f"{_nearest(name, _fields_of(classes[-1]))}{where}"
        )

    group = re.search(r"""Group ['"]([\w.]+)['"] does not accept option ['"]([\w.]+)['"]""", message)
    if group or refused:
        key = f"{group[1]}.{group[2]}" if group else refused[0]
        return f"unknown setting {key!r}{_nearest(key, _keys(parser))}{where}"

    key = ".".join(keys)
    bad_class = re.search(r"Expected a dot import path string: (\S+)", message)
    absent = re.search(r"No module named .+|module '.+' has no attribute .+|Problem importing.+", message)
    if keys and (bad_class or (absent and classes)):
        known = ", ".join(_classes_for(parser, keys, classes)) or "the known classes"
        if bad_class:
            return f"{key}: {bad_class[1]!r} is neither one of {known} nor an import path such as mypkg.MyClass{where}"
        return f"{key}: {classes[-1]!r} cannot be imported ({absent[0]}); the known ones are {known}{where}"  # type: ignore[index]
    if keys and "Expected a" in message:
        return f"{key} must be {_kinds(message)}, not {_value(message)!r}{_as_list(parser, keys, message)}{where}"
    missing = re.search(r"File does not exist: ['\"](.+?)['\"]", message)
    if missing:
        return f"configuration file {missing[1]} does not exist"
    if "Problems parsing config" in message:
        return f"{files[-1] if files else 'the configuration'} is not valid YAML: {_one_line(message)}"
    return _one_line(message) + where


def _nearest(key: str, valid: list[str]) -> str:
    """`; did you mean 'optimizer.lr'?`, or the list of valid keys at that level when nothing is close."""
    close = ["optimizer.lr"] if key in _LEARNING_RATE and "optimizer.lr" in valid else []
    close = close or difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    if not close:  # right name, wrong or missing group
        last = key.rsplit(".", 1)[-1]
        ends = {name.rsplit(".", 1)[-1]: name for name in reversed(valid)}
        close = [ends[name] for name in difflib.get_close_matches(last, list(ends), n=1, cutoff=0.6)]
    if not close:
        level = key.rsplit(".", 1)[0] + "." if "." in key else ""
        siblings = sorted({level + name[len(level) :].split(".", 1)[0] for name in valid if name.startswith(level)})
        return f"; valid ones are {', '.join(siblings)}" if siblings else ""
    return f"; did you mean {close[0]!r}?"


def _keys(parser: Any) -> list[str]:
    """Every key the parser knows, class-valued settings with the settings of their present class."""
    defaults = parser.get_defaults(skip_validation=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # skip_none, as above
        flat = parser.dump(defaults, format="json", skip_validation=True, skip_none=False)

    keys: list[str] = []

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            inner = value.get("init_args", {}) if "class_path" in value else value
            if prefix:
                keys.append(prefix)
            for name, item in inner.items():
                walk(f"{prefix}.{name}" if prefix else name, item)
        else:
            keys.append(prefix)

    walk("", json.loads(flat))
    return keys


def _fields_of(class_path: str) -> list[str]:
    import dataclasses
    import importlib

    module, _, name = class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    return [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _kinds(message: str) -> str:
    """The kinds of value that jsonargparse names: `float`, `auto or null`, `one of 'cosine', 'step'`."""
    found = re.findall(r"Expected an? (.+?)(?=\. Got value|$)", message, re.MULTILINE)
    optional = len(found) > 1
    kinds = []
    for kind in found:
        kind = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", kind).replace("typing.", "")
        literal = re.fullmatch(r"Literal\[(.*)\]", kind)
        if literal:
            kind = literal[1].strip("'") if optional and "," not in literal[1] else f"one of {literal[1]}"
        kinds.append({"NoneType": "null", "tuple": "a list"}.get(kind, kind))
    return " or ".join(dict.fromkeys(kinds))


def _value(message: str) -> str:
    """The value as it was written, where jsonargparse tells that, else as it was read."""
    written = re.search(r"Given value: (.+)", message)
    return written[1] if written else re.findall(r"Got value: (.+)", message)[-1]


def _as_list(parser: Any, keys: list[str], message: str) -> str:
    """`; write [33, 33]` where one value stands for a list."""
    hint = _hint(parser, keys[:1], [])
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) is tuple and not re.search(r"[\[\](){}]", _value(message)):
            count = 1 if Ellipsis in typing.get_args(part) else len(typing.get_args(part))
            return f"; write [{', '.join([_value(message)] * count)}]"
    return ""


def _classes_for(parser: Any, keys: list[str], classes: list[str]) -> list[str]:
    """Names of the classes already imported that a class-valued setting accepts."""

    def below(cls: type) -> list[str]:
        return [name for sub in cls.__subclasses__() for name in (sub.__name__, *below(sub))]

    hint = _hint(parser, keys, classes)
    return sorted({name for part in (hint, *typing.get_args(hint)) if isinstance(part, type) for name in below(part)})


def _hint(parser: Any, keys: list[str], classes: list[str]) -> Any:
    """The type of a setting: `keys` lead to it through a value of each of `classes`."""
    import importlib

    hint = next((a._typehint for a in parser._actions if a.dest == keys[0] and hasattr(a, "_typehint")), None)
    for key, path in zip(keys[1:], classes):
        module, _, name = path.rpartition(".")
        hint = typing.get_type_hints(getattr(importlib.import_module(module), name)).get(key)
    return hint


def _one_line(message: str) -> str:
    return " ".join(message.split())
