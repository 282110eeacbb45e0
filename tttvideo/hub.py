"""Models on the Hugging Face Hub: the files of an export, fetched by name and pushed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .printing import cause

NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ("config.json", "model.safetensors", "labels.json", "README.md")
"""What is fetched and pushed, whatever else a repository holds: data, and nothing that runs. A model's own classes are
pushed, and fetched by those who trust them."""


def is_name(path: str | Path) -> bool:
    """Whether it reads ``owner/name``, and is no path of this machine that is misspelt at its end."""
    text = str(path)
    return bool(NAME.fullmatch(text)) and not text.startswith(".") and not Path(text).parent.exists()


def fetch(name: str, *, code: bool = False) -> Path:
    """The folder of the Hub's cache that holds a model; with ``code`` the Python files that it carries, too.

    Raises:
        ValueError: there is none of this name, or the Hub is not in reach and its cache has none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        patterns = [*FILES, *(["*.py"] if code else [])]
        return Path(snapshot_download(name, allow_patterns=patterns, library_name="tttvideo"))
    except Exception as error:  # every cause has a class of its own, some of the library below
        offline = isinstance(error, LocalEntryNotFoundError)
        reason = "cannot be reached" if offline else f"gives no model of that name ({cause(error)})"
        raise ValueError(
            f"{name} is no folder here, and the Hub {reason}; give a run folder, a checkpoint, an export, or the "
            "owner/name of a model on the Hub."
        ) from error


def push(folder: Path, name: str, carried: Sequence[str] = ()) -> str:
    """Puts an export, and the files that it carries, on the Hub, in a new private repository if there is none; returns
    its address.

    Raises:
        ValueError: the Hub does not take it, with the reason.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name="tttvideo")
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=str(folder), allow_patterns=[*FILES, *carried])
    except Exception as error:
        raise ValueError(
            f"{folder} is written, but the Hub did not take it as {name} ({cause(error)}); log in with "
            "`hf auth login` where that is the cause, and run the same command again."
        ) from error
    return address
