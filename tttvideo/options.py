"""How commands read their options: argparse with one-sentence errors, and the options that several share."""

import argparse
import dataclasses
import difflib
import os
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn


class UsageError(ValueError):
    """A command line that cannot be understood; one sentence."""


class Help(argparse.HelpFormatter):
    """Defaults are shown, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.option_strings and action.default not in (None, False, argparse.SUPPRESS, [])
        return f"{action.help} (default: %(default)s)" if shown else action.help or ""


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError, accepts no abbreviations and suggests the nearest option."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=Help, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        # Before anything else: a misspelt option would be reported as a missing one.
        known = [option for action in self._actions for option in action.option_strings]
        for word in argv:
            option = word.split("=", 1)[0]
            if option == "--":
                break
            if option.startswith("--") and option not in known:
                raise UsageError(f"unknown option {option} of {self.prog}{nearest(option, known)}")
        return self.parse_args(argv)


def nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(known)}"


def add_fields(parser: argparse.ArgumentParser, cls: type) -> None:
    """An option for each field of a dataclass that the parser does not have yet, its help taken from the docstrings'
    `Args:`."""
    from docstring_parser import parse

    helps = {p.arg_name: p.description for base in reversed(cls.__mro__) for p in parse(base.__doc__ or "").params}
    hints = typing.get_type_hints(cls)
    given = {action.dest for action in parser._actions}
    for field in dataclasses.fields(cls):
        if field.name in given:
            continue
        name, text = f"--{field.name.replace('_', '-')}", helps.get(field.name) or "see the documentation"
        text = text.replace("%", "%%")
        if typing.get_origin(hints[field.name]) is typing.Literal:
            choices = typing.get_args(hints[field.name])
            parser.add_argument(name, choices=choices, default=field.default, help=text)
            continue
        kinds = [kind for kind in typing.get_args(hints[field.name]) if kind is not type(None)]
        kind = (str if str in kinds else kinds[0]) if kinds else hints[field.name]
        if kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            parser.add_argument(name, type=kind, default=field.default, metavar=kind.__name__.upper(), help=text)


def add_checkpoint(parser: argparse.ArgumentParser, device: bool = True) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="run folder (its best), checkpoint in it, or export")
    add_device(parser, device)


def add_device(parser: argparse.ArgumentParser, device: bool = True) -> None:
    parser.add_argument(
        "--trust",
        action="store_true",
        help="allow model classes outside tttvideo, also from the working directory, and the TorchScript of --fvd: "
        "they run their code",
    )
    if device:
        parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ... (default: what is there)")


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="folder of class folders, or list file")
    parser.add_argument(
        "--split",
        help="part of the data, `all` for everything (default: val, or all of data that has no splits of its own and "
        "of which no video was trained on)",
    )
    parser.add_argument(
        "--root",
        default=None,
        help="folder that a list's relative paths count from (default: as in training for the list trained with; "
        "else the list's own folder)",
    )


def check_folder(out: Path) -> None:
    """That results can be written there, without making it: a command that is refused leaves nothing behind.

    Raises:
        UsageError: if not.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    there = next(folder for folder in [out, *out.absolute().parents] if folder.exists() or folder.is_symlink())
    if there.is_symlink() and not there.exists():
        raise UsageError(f"--out {out} cannot be made: {there} is a link to nothing")
    if not there.is_dir():
        raise UsageError(f"--out {out} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"--out {out} cannot be written to" if there == out else f"--out {out} cannot be made in {there}"
        )


def add_settings(parser: Parser) -> tuple[str, ...]:
    """What the accuracy of a classifier is measured under; returns the names."""
    several: dict[str, typing.Any] = {"action": "extend", "nargs": "+", "default": None}
    parser.add_argument(
        "--frames",
        default=None,
        help="cuts with commas, e.g. 16,64,256,all; 2x is twice the length of a training clip (default: all)",
    )
    parser.add_argument(
        "--sampling",
        metavar="RULE",
        help="dense, fps=R, uniform=N, segments=N, window=SECONDS, last=N; several allowed (default: as in training)",
        **several,
    )
    parser.add_argument(
        "--views",
        metavar="RULE",
        help="whole, clips=CLIPSxCROPS[:FRAMES], spans=SECONDS[:STEP]: read clips and crops, or sliding spans, and "
        "average their probabilities; several allowed (default: whole)",
        **several,
    )
    parser.add_argument(
        "--controls",
        metavar="NAME",
        help="further rows, of the first sampling rule, with something taken away: inner-rate-0 (no learning at test "
        "time), reset (state thrown away after each chunk), shuffled (frames in a random order; holds whole videos), "
        "or all that apply",
        **several,
    )
    parser.add_argument(
        "--by",
        metavar="COLUMN",
        help="report accuracy against a column of meta.csv or of the list, e.g. depth, or depth:8 for eight bins "
        "(default: what a generated suite names)",
        **several,
    )
    parser.add_argument(
        "--check-streaming",
        type=int,
        default=None,
        metavar="N",
        help="read N videos whole in one call, too, and compare with the stream (default: none)",
    )
    return ("frames", "sampling", "views", "controls", "by", "check_streaming")


def add_prediction(parser: Parser) -> tuple[str, ...]:
    """The options of a rollout; returns their names."""
    parser.add_argument("--context", type=int, default=None, help="frames that are read (default: 10)")
    parser.add_argument("--horizon", type=int, default=None, help="frames that are predicted (default: 10)")
    parser.add_argument(
        "--write",
        choices=("all", "context"),
        default=None,
        help="what the hidden state learns from: all frames, its own predictions too, or the context alone "
        "(default: all)",
    )
    return ("context", "horizon", "write")


def add_frame_metrics(parser: Parser) -> tuple[str, ...]:
    """The options of how predictions are measured; returns their names."""
    parser.add_argument(
        "--grey",
        action="store_const",
        const=True,
        default=None,
        help="measure predictions in grey, one channel, as tables of Moving MNIST and KTH do",
    )
    parser.add_argument(
        "--lpips",
        metavar="FILE",
        default=None,
        help="measure LPIPS too: torchvision's ImageNet weights of AlexNet, VGG-16 or SqueezeNet 1.1",
    )
    parser.add_argument(
        "--fvd",
        metavar="FILE",
        default=None,
        help="measure the Fréchet video distance too: I3D as TorchScript, which is a program and so needs --trust",
    )
    return ("grey", "lpips", "fvd")
