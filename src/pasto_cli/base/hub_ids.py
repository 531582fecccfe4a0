"""What a user's text can mean: an id on the Hub (`user/name`), or a path on this machine.

Most arguments take either. The file system is asked first; these rules say what is left for the
Hub, so that a mistyped path is reported as one and is never looked up on the network.
"""

import re

# Neither part may consist of dots alone where it would lead out of a folder: `user/..`, `../name`.
_HUB_ID = re.compile(r"(?!\.+/)[\w.-]+/(?!\.+$)[\w.-]+")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a repository id, `user/name`."""
    return _HUB_ID.fullmatch(text) is not None


def looks_like_path(text: str) -> bool:
    """Whether a text can only be a path: `./x`, `/x`, `~/x`, `a/b/c`."""
    return text.startswith((".", "/", "~")) or text.count("/") > 1
