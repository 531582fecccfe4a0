"""Adapters on the Hugging Face Hub: upload and download, with errors that say what to do.

The token is never shown, in no message and no traceback.
"""

from collections.abc import Sequence
from pathlib import Path

from pasto_cli.base.errors import PastoError
from pasto_cli.base.hub_reach import prefer_cache_off_network
from pasto_cli.core.artifact.store import CARD, META, TENSORS
from pasto_cli.core.models.load_errors import disk_failure

FILES = (TENSORS, META, CARD)
TRANSPORTS = ("httpx", "httpcore", "httpx2", "httpcore2", "requests")
"""HTTP libraries that versions of the Hub's client are built on."""


def upload(folder: Path, repo: str, card: str, meta: str, private: bool) -> str:
    """Create the repository if need be and commit the adapter with its card.

    Args:
        folder: With the tensors.
        repo: `user/name`.
        card: Text of README.md.
        meta: Text of pasto.json.
        private: Make a new repository private.

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
    # What is published names the repository and the base on the Hub; what is here need not.
    texts = {CARD: card, META: meta}
    operations = [CommitOperationAdd(TENSORS, str(folder / TENSORS))]
    operations += [CommitOperationAdd(name, text.encode()) for name, text in texts.items()]
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(
            repo, operations, commit_message="Adapter, card and provenance from pasto"
        )
    except Exception as error:
        raise failure(error, repo, "write to") from None
    return commit.commit_url


def download(repo: str, files: Sequence[str] = FILES, revision: str | None = None) -> Path:
    """Local folder of an adapter on the Hub, complete.

    Raises:
        PastoError: If it is not there, not allowed or not reachable.
    """
    from huggingface_hub import snapshot_download

    prefer_cache_off_network()
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except Exception as error:
        raise failure(error, repo) from None
    missing = [name for name in files if name != CARD and not (folder / name).is_file()]
    if not missing:
        return folder
    if any((folder / name).is_file() for name in files):
        # Offline, the client hands out whatever part of a repository it has.
        raise PastoError(
            f"the download of {repo} is not complete: {missing[0]} is missing",
            "Connect and try again; if it stays missing, the repository does not hold it.",
        )
    raise PastoError(
        f"{repo} holds no {missing[0]}: it is not an adapter of this format", "Check the id."
    )


def commit_of(repo: str) -> str:
    """The commit that a model on the Hub is at.

    Raises:
        PastoError: If it is not there, not allowed or not reachable.
    """
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(repo, revision="main").sha or "main"
    except Exception as error:
        raise failure(error, repo) from None


def failure(error: Exception, repo: str, right: str = "read") -> PastoError:
    """What went wrong with the Hub, and the next step; an error of another kind is raised again.

    Args:
        error: What the client raised.
        repo: `user/name`.
        right: What was asked for, if it is not permitted.
    """
    from huggingface_hub import errors as hub

    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        return failure(error.__cause__, repo, right)  # how the client reports a failed upload
    if isinstance(error, OSError) and (found := disk_failure(error)):
        return found
    if isinstance(error, hub.GatedRepoError):
        return PastoError(f"{repo} is gated", "Ask for access on its page, then: hf auth login.")
    if isinstance(error, hub.RevisionNotFoundError):
        return PastoError(
            f"{repo} has no such revision", "Check --revision: a branch, a tag or a commit."
        )
    if isinstance(error, hub.HFValidationError):
        return PastoError(f"{repo!r} is not a repository id", "Write user/name.")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub.RepositoryNotFoundError) or status == 404:
        return PastoError(
            f"{repo}: no such repository on the Hub, or it is private",
            "Check the id; for a private one: hf auth login.",
        )
    if status is not None and (found := _refusal(status, repo, right)):
        return found
    unreachable = OSError | hub.OfflineModeIsEnabled | hub.LocalEntryNotFoundError
    if isinstance(error, unreachable | hub.HfHubHTTPError) or _is_transport(error):
        return PastoError(
            f"the Hub cannot be reached for {repo} ({type(error).__name__})",
            "Check the connection and try again.",
        )
    raise error


def _refusal(status: int, repo: str, right: str) -> PastoError | None:
    """What an answer of the Hub's means; None for one that says nothing to a user."""
    if status == 401:
        return PastoError(
            "the Hub does not accept this token (401)",
            "Make a new one with write permission, then: hf auth login.",
        )
    if status == 403:
        return PastoError(
            f"no permission to {right} {repo} (403)",
            "Check the user name in the id and that the token may do so: hf auth whoami.",
        )
    if status in (413, 507):
        return PastoError(
            f"the Hub has no room for {repo} ({status})", "Make space in your account's storage."
        )
    if status == 429:
        return PastoError("the Hub was asked too often (429)", "Wait for some minutes.")
    if status >= 500:
        return PastoError(
            f"the Hub has a fault of its own ({status}); {repo} may be as it was",
            "Try again later: https://status.huggingface.co says how it is.",
        )
    return None


def _is_transport(error: Exception) -> bool:
    """Whether an error is one of the HTTP library's own, which are not OSErrors."""
    return type(error).__module__.split(".")[0] in TRANSPORTS
