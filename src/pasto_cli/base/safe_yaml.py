"""YAML with bounds: a few lines of aliases may unfold to more data than any memory holds.

Texts are whole: a character that JSON wrote as two escapes is joined again, and half of one is
refused with its line.
"""

from typing import Any, cast

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from pasto_cli.base.text import half_character, joined_surrogates

LIMIT = 1_000_000
"""Values that a file may stand for with its aliases unfolded."""
DEPTH = 100
"""Levels of nesting."""


OwnLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""For files of the package, which need no bounds: many times as fast where PyYAML has its part in
C."""


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds on nesting and on what aliases unfold to.

    No value may hold itself.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.count = self.depth = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose as always, and count."""
        event: Any = cast(Any, self).peek_event()
        if isinstance(event, yaml.AliasEvent):
            known = self.sizes.get(id(self.anchors.get(event.anchor)))
            if event.anchor in self.anchors and known is None:
                raise self._refused(f"*{event.anchor} stands inside of what it names", event)
            self._add(known or 0, event)
            return super().compose_node(parent, index)
        before = self.count
        self._add(1, event)
        self.depth += 1
        if self.depth > DEPTH:
            raise self._refused(f"nested deeper than {DEPTH} levels", event)
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode):
            self._make_whole(node)
        self.depth -= 1
        self.sizes[id(node)] = self.count - before
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct as always; what cannot be constructed (the 31st of February) has its place."""
        try:
            return cast(Any, super()).construct_object(node, deep)
        except (ValueError, LookupError) as error:
            value = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(
                None,
                None,
                f"{value[:40]!r} reads as a {kind} and is none ({error}); quote it if it is a text",
                node.start_mark,
            ) from None

    @staticmethod
    def _make_whole(node: yaml.ScalarNode) -> None:
        node.value = joined_surrogates(node.value)
        if half := half_character(node.value):
            problem = f"{half} is half a character; write both halves, or the character"
            raise ComposerError(None, None, problem, node.start_mark)

    def _add(self, values: int, event: yaml.Event) -> None:
        self.count += values
        if self.count > LIMIT:
            raise self._refused(f"stands for more than {LIMIT:,} values", event)

    @staticmethod
    def _refused(problem: str, event: yaml.Event) -> yaml.YAMLError:
        return ComposerError(None, None, problem, event.start_mark)
