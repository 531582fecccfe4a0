"""What a launcher of several processes (`torchrun`, `accelerate launch`) says in the environment.

    WORLD_SIZE                  processes in all
    RANK                        which of them this one is, from 0
    MASTER_ADDR, MASTER_PORT    where they meet

A shell or a batch system may set some of these without having started anything.
"""

import os

from pasto_cli.base.errors import PastoError

_CURE = "Start with torchrun, which sets it, or for one process: unset WORLD_SIZE"


def world_size() -> int:
    """How many processes a launcher has started; 1 without a launcher.

    Raises:
        PastoError: If a variable is missing or no number; it is named.
    """
    text = os.environ.get("WORLD_SIZE", "").strip()
    if not text:
        return 1
    size = _number("WORLD_SIZE", text, 1, 2**31)
    if size > 1:
        for name, most in (("RANK", size - 1), ("MASTER_PORT", 65535)):
            _number(name, _required(name), 0, most)
        _required("MASTER_ADDR")
    return size


def _required(name: str) -> str:
    if found := os.environ.get(name, "").strip():
        return found
    raise PastoError(
        f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that there are several processes, but {name} "
        f"is not set",
        _CURE,
    )


def _number(name: str, text: str, least: int, most: int) -> int:
    if text.isascii() and text.isdigit() and least <= int(text) <= most:
        return int(text)
    raise PastoError(
        f"the environment variable {name}={text!r} is not a number of {least} or more", _CURE
    )
