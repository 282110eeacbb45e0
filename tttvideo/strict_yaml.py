"""YAML that gives settings: plain data only, and nothing of it dropped without a word."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

DEEPEST = 64
"""Levels of lists and mappings in a configuration; ours have about a dozen."""
LARGEST = 100_000
"""Values in a configuration, each as often as an alias repeats it; ours have about a hundred."""


LONGEST_NUMBER = 300
"""Digits of a whole number; beyond 4,300 Python gives advice of its own."""


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
    """YAML's safe loader, but a key that stands twice is an error, as the first would be dropped; and so is what no
    settings are: nested for ever, or made endless by aliases."""
    import yaml

    class Strict(yaml.SafeLoader):
        def __init__(self, text: str):
            super().__init__(text)
            self.depth = self.size = 0
            self.sizes: dict[int, int] = {}  # of the nodes that are complete

        def compose_node(self, parent: Any, index: Any) -> Any:
            mark, alias, before = self.peek_event().start_mark, self.check_event(yaml.AliasEvent), self.size
            if self.depth > DEEPEST:
                raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} levels deep", mark)
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            if alias and id(node) not in self.sizes:
                raise yaml.composer.ComposerError(None, None, "an alias within what it stands for", mark)
            self.size += self.sizes[id(node)] if alias else 1
            if self.size > LARGEST:
                raise yaml.composer.ComposerError(None, None, f"more than {LARGEST:,} values", mark)
            self.sizes[id(node)] = self.size - before
            return node

        def construct_yaml_int(self, node: Any) -> int:
            if len(node.value) > LONGEST_NUMBER:
                raise yaml.constructor.ConstructorError(
                    None, None, f"a number of {len(node.value):,} digits", node.start_mark
                )
            return super().construct_yaml_int(node)

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := next((name for name, count in Counter(names).items() if count > 1), None):
                raise yaml.composer.ComposerError(None, None, f"{twice!r} is given twice", node.start_mark)
            return node

    Strict.add_constructor("tag:yaml.org,2002:int", Strict.construct_yaml_int)
    return Strict
