"""What every option of a kind has, whichever verb it belongs to."""

import inspect
from typing import get_args, get_type_hints

import pytest

from pasto_cli.cli import options
from pasto_cli.cli.app import app


def every_option():
    """(verb, parameter, type, what typer knows of it) of all verbs."""
    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    for command in (command for group in groups for command in group.registered_commands):
        verb = command.callback
        hints = get_type_hints(verb, include_extras=True)
        for name in inspect.signature(verb).parameters:
            kind, *more = get_args(hints[name])
            yield verb.__name__, name, str(kind), more[0]


OPTIONS = list(every_option())


@pytest.mark.parametrize(("verb", "name", "kind", "info"), OPTIONS, ids=lambda x: str(x)[:20])
def test_paths_are_expanded_and_numbers_have_ranges(verb, name, kind, info):
    if "Path" in kind:
        assert info.callback is options.expand
    if "seed" in name and "int" in kind and name != "seeds":
        assert info.callback is options.seed
    elif "int" in kind:
        assert info.max is not None or info.callback is options.count


def test_there_are_some():
    assert sum("Path" in kind for _, _, kind, _ in OPTIONS) > 10
    assert sum("int" in kind for _, _, kind, _ in OPTIONS) > 10
