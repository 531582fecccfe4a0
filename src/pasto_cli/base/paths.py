"""Paths as users write them: in options, recipes and environment variables."""

from pathlib import Path

from pasto_cli.base.errors import PastoError


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~name` put as the home directories that they mean.

    Raises:
        PastoError: If there is no such user, or no home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # what pathlib says for both
        user = Path(path).parts[0][1:]
    if user:
        raise PastoError(
            f"{path}: no such folder (there is no user {user})", "Write the path from / on."
        )
    raise PastoError(
        f"{path}: the home directory is not known", "Set HOME, or write the path from / on."
    )
