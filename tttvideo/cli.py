"""The command `tttvideo`: finds the function of a command in COMMANDS, reads its settings, and says what went wrong.

A command is a function of one dataclass, whose fields are what can be typed (`arguments.py`). Mistakes of a user end
in one line and exit code 2. Nothing is imported before it is known which command it is.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

from .printing import did_you_mean, printable, sentence
from .synonyms import COMMANDS as SYNONYMS


class Command(NamedTuple):
    module: str
    function: str
    summary: str


COMMANDS = {
    "train": Command(".training.run", "main", "train a model on a folder of videos"),
    "evaluate": Command(".evaluating", "evaluate", "accuracy by length and sampling, or error by horizon"),
    "compare": Command(".evaluating", "compare", "evaluations of several runs side by side, with intervals"),
    "position": Command(".evaluating", "position", "loss against the number of frames read"),
    "predict": Command(".inference.commands", "predict", "the next frames of videos, as a film and a picture each"),
    "export": Command(".commands", "export", "a checkpoint for others: a folder, or a streaming step (ONNX)"),
    "classify": Command(".inference.commands", "classify", "name the classes of videos: files, folders, lists"),
    "stream": Command(".inference.commands", "stream", "answer while a video comes: files, pipes, cameras, addresses"),
    "serve": Command(".inference.commands", "serve", "a page in the browser: drop a video, see answers as it is read"),
    "inspect": Command(".inference.commands", "inspect", "what a model costs, and what it learns while it reads"),
    "make-data": Command(".commands", "make_data", "generated videos with known best possible accuracy or error"),
    "configs": Command(".commands", "configs", "list the recipes that `train --config NAME` takes"),
    "plan": Command(".planning.plan", "plan", "what a run costs in memory and time, before it is begun"),
    "cache": Command(".training.features", "cache", "encode videos with a frozen encoder ahead of training"),
    "index": Command(".indexing", "index", "read every video through once, so that training starts at once"),
    "check": Command(".indexing", "check", "what is wrong with the videos of a folder or list"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Set TTTVIDEO_TRACEBACK=1 to see where an error was raised."""
    if argv is None:  # a process of its own: Python processes that it starts do not search the working directory first
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        if os.environ.get("TTTVIDEO_TRACEBACK"):
            raise
        _complain(sentence(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    finally:
        _leave_process_group()


def _run(words: list[str]) -> int:
    if not words or words[0].startswith("-") or words[0] in ("help", "version"):
        return _without_command(words)
    name, *rest = words
    if name not in COMMANDS:
        meant = f"; did you mean {SYNONYMS[name]}?" if name in SYNONYMS else did_you_mean(name, COMMANDS)
        raise ValueError(f"there is no command {name!r}{meant}")
    function = command_function(name)
    settings = settings_class(function)
    if settings is None:
        return function(rest)
    from .arguments import read

    return function(read(settings, rest, prog=f"tttvideo {name}")[0])


def command_function(name: str) -> Any:
    command = COMMANDS[name]
    return getattr(importlib.import_module(command.module, __package__), command.function)


def settings_class(function: Any) -> type | None:
    """The dataclass that a command takes; None for one that reads its words by itself (train, make-data)."""
    return typing.get_type_hints(function).get("config")


def _without_command(words: Sequence[str]) -> int:
    from . import __version__

    if words and words[0] in ("--version", "-V", "version"):
        print(f"tttvideo {__version__}")
        return 0
    if words and words[0] not in ("-h", "--help", "help"):
        raise ValueError(f"unknown option {words[0]} of tttvideo{did_you_mean(words[0], ['--help', '--version'])}")
    commands = "\n".join(f"  {name:11}{command.summary}" for name, command in COMMANDS.items())
    text = (
        "usage: tttvideo COMMAND ...\n\nTrain, evaluate, export and use models of long videos.\n\n"
        f"commands:\n{commands}\n\ntttvideo COMMAND --help lists its settings; tttvideo --version."
    )
    print(text, file=sys.stdout if words else sys.stderr)
    return 0 if words else 2


def _nobody_reads() -> bool:
    """Whether the reader of the standard output has gone, as `head` does; then what is left to say goes nowhere."""
    output = sys.stdout.fileno()
    watch = select.poll()
    watch.register(output, 0)
    if not watch.poll(0):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
    return True


def _complain(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # under torchrun every process meets the same error: said once
        print(printable(f"error: {text}"), file=sys.stderr)


def _leave_process_group() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
