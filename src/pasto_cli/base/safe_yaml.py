"""YAML with bounds: a few lines of aliases may unfold to more data than any memory holds."""

from typing import Any, cast

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

LIMIT = 1_000_000
"""Values that a file may stand for with its aliases unfolded."""
DEPTH = 100
"""Levels of nesting."""


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
        self.depth -= 1
        self.sizes[id(node)] = self.count - before
        return node

    def _add(self, values: int, event: yaml.Event) -> None:
        self.count += values
        if self.count > LIMIT:
            raise self._refused(f"stands for more than {LIMIT:,} values", event)

    @staticmethod
    def _refused(problem: str, event: yaml.Event) -> yaml.YAMLError:
        return ComposerError(None, None, problem, event.start_mark)


def yaml_problem(error: yaml.YAMLError, text: str, name: str) -> str:
    """What is wrong with a YAML text, as one line: `name:12: not valid YAML: ...`."""
    line: int | None = None
    problem = str(error)
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        problem = error.problem or problem
    elif isinstance(error, ReaderError):  # a character that YAML does not know; it has no mark
        line = text.count("\n", 0, error.position) + 1
        problem = f"the character U+{ord(str(error.character)[:1] or chr(0)):04X} is not allowed"
    where = name if line is None else f"{name}:{line}"
    return f"{where}: not valid YAML: {' '.join(problem.split())}"
