"""Adapters on the Hugging Face Hub: upload and download, with errors that say what to do.

The token is never shown, in no message and no traceback.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pasto_cli.base.errors import PastoError
from pasto_cli.core.artifact.store import CARD, META, TENSORS

FILES = (TENSORS, META, CARD)
TRANSPORTS = ("httpx", "httpcore", "httpx2", "httpcore2", "requests")
"""HTTP libraries that versions of the Hub's client are built on."""


def upload(folder: Path, repo: str, card: str, private: bool) -> str:
    """Create the repository if need be and commit the adapter with its card.

    Returns:
        Address of the commit.

    Raises:
        PastoError: For no token, no permission, no network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if not get_token():
        raise PastoError(
            "no Hub token on this machine",
            "Make one with write permission in your Hub settings, then: hf auth login.",
        )
    api = HfApi()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / CARD).write_text(card, encoding="utf-8")
        # The card that is published has the repository's name in it; the one in the folder has not.
        places = {TENSORS: folder, META: folder, CARD: Path(scratch)}
        operations = [CommitOperationAdd(name, str(places[name] / name)) for name in FILES]
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            commit = api.create_commit(
                repo, operations, commit_message="Adapter, card and provenance from pasto"
            )
        except Exception as error:
            raise failure(error, repo) from None
    return commit.commit_url


def download(repo: str, files: Sequence[str] = FILES, revision: str | None = None) -> Path:
    """Local folder of an adapter on the Hub, complete.

    Raises:
        PastoError: If it is not there, not allowed or not reachable.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise failure(error, repo) from None
    if missing := [name for name in files if name != CARD and not (folder / name).is_file()]:
        raise PastoError(
            f"{repo} holds no {missing[0]}: it is not an adapter of this format", "Check the id."
        )
    return folder


def failure(error: Exception, repo: str) -> PastoError:
    """What went wrong with the Hub, and the next step; an error of another kind is raised again."""
    from huggingface_hub import errors as hub

    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        return failure(error.__cause__, repo)  # how the client reports a failed upload
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub.GatedRepoError):
        return PastoError(f"{repo} is gated", "Ask for access on its page, then: hf auth login.")
    if isinstance(error, hub.RevisionNotFoundError):
        return PastoError(
            f"{repo} has no such revision", "Check --revision: a branch, a tag or a commit."
        )
    if isinstance(error, hub.HFValidationError):
        return PastoError(f"{repo!r} is not a repository id", "Write user/name.")
    if status == 401:
        return PastoError(
            "the Hub does not accept this token (401)",
            "Make a new one with write permission, then: hf auth login.",
        )
    if status == 403:
        return PastoError(
            f"no permission to write to {repo} (403)",
            "Check the user name in the id and that the token may write.",
        )
    if isinstance(error, hub.RepositoryNotFoundError) or status == 404:
        return PastoError(
            f"{repo}: no such repository on the Hub, or it is private",
            "Check the id; for a private one: hf auth login.",
        )
    unreachable = OSError | hub.OfflineModeIsEnabled | hub.LocalEntryNotFoundError
    if isinstance(error, unreachable | hub.HfHubHTTPError) or _is_transport(error):
        return PastoError(
            f"the Hub cannot be reached for {repo} ({type(error).__name__})",
            "Check the connection and try again.",
        )
    raise error


def _is_transport(error: Exception) -> bool:
    """Whether an error is one of the HTTP library's own, which are not OSErrors."""
    return type(error).__module__.split(".")[0] in TRANSPORTS
