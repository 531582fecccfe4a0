"""pasto: a dial for a language model, trained from two words, measured and published.

`load`, `steer` and `Dial` come from `pasto_cli.api`; they are imported on first use, so that the
command line starts without torch.
"""

from typing import TYPE_CHECKING, Any

from pasto_cli.base.errors import PastoError
from pasto_cli.base.version import __version__

if TYPE_CHECKING:
    from pasto_cli.api import Dial, load, steer

__all__ = ["Dial", "PastoError", "__version__", "load", "steer"]


def __getattr__(name: str) -> Any:
    if name in ("Dial", "load", "steer"):
        from pasto_cli import api

        return getattr(api, name)
    raise AttributeError(f"module 'pasto_cli' has no attribute {name!r}")
