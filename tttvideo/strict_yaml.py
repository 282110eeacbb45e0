"""YAML that gives settings: plain data only, and nothing of it dropped without a word."""

from __future__ import annotations

import functools
from typing import Any


class NotText(ValueError):
    """It holds characters that no text has."""


def load(text: str) -> Any:
    """What a text means. Raises ValueError: one line on what is wrong; NotText."""
    import yaml

    try:
        return yaml.load(text, _loader())
    except yaml.reader.ReaderError as error:
        raise NotText(str(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date or a number that is none
        raise ValueError(" ".join(str(error).split())) from None


@functools.cache
def _loader() -> type:
    """YAML's safe loader, but a key that stands twice is an error: the first would be dropped."""
    import yaml

    class Strict(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise yaml.composer.ComposerError(None, None, f"{twice!r} is given twice", node.start_mark)
            return node

    return Strict
