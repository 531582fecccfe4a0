"""Whether the Hub can be reached: asked once, so that a machine without a network need not wait.

The Hub's client makes each request six times, half a minute long, and says so in lines of its own,
before it looks into its cache.
"""

import socket
from collections.abc import Callable
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

SECONDS = 5.0
"""How long a connection may take."""


def prefer_cache_off_network(notify: Callable[[str], None] = lambda _: None) -> None:
    """Let the Hub's client read its cache alone where the Hub cannot be reached.

    Args:
        notify: Told so, once.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode() or in_reach(constants.ENDPOINT):
        return
    constants.HF_HUB_OFFLINE = True
    notify(f"{urlsplit(constants.ENDPOINT).hostname} cannot be reached: looking in the local cache")


@cache
def in_reach(address: str) -> bool:
    """Whether something listens at an address; behind a proxy only the proxy knows."""
    parts = urlsplit(address)
    if getproxies() or parts.hostname is None:
        return True
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname, port), SECONDS).close()
    except OSError:
        return False
    return True
