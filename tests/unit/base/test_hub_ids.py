"""What a user's text can mean: a Hub id or a path."""

import pytest

from pasto_cli.base.hub_ids import is_hub_id, looks_like_path


@pytest.mark.parametrize(
    ("text", "hub", "path"),
    [
        ("user/name", True, False),
        ("user-1/na.me_2", True, False),
        ("gpt2", False, False),
        ("me /nothing", False, False),
        ("user/..", False, False),
        ("../name", False, True),
        ("./name", False, True),
        ("~/name", False, True),
        ("/name", False, True),
        ("a/b/c", False, True),
        ("https://x/y", False, True),
        ("random:llama", False, False),
        ("package:x/y.gguf", False, False),
        ("-/\x00", False, False),
        ("user/name\n", False, False),
    ],
)
def test_what_is_a_hub_id_and_what_is_a_path(text, hub, path):
    assert (is_hub_id(text), looks_like_path(text)) == (hub, path)
