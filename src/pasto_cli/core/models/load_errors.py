"""What to tell a user whose model did not load, and what to do next.

transformers and huggingface_hub wrap errors in errors, so that the cause is looked for in the whole
chain.
"""

import errno
from pathlib import Path

import torch

from pasto_cli.base.errors import PastoError
from pasto_cli.base.hub_ids import is_hub_id
from pasto_cli.core.models.checkpoint_files import cached_snapshot, missing_files
from pasto_cli.core.recipe.schema import ModelSpec

FILES_MISSING = ("does not appear to have", "can't load tokenizer for", "can't load the model for")
"""What transformers says of a repository without some of its files."""


def load_failure(spec: ModelSpec, error: Exception) -> PastoError:
    """A library's error while loading `spec`, in words that name the next step."""
    if isinstance(error, PastoError):
        return error
    chain = _chain(error)
    name = spec.source + (f"@{spec.revision}" if spec.revision else "")
    found = next((x for x in map(_disk_failure, chain) if x), None)
    if found is None:
        found = _hub_failure(chain, name, spec)
    if found is not None:
        return found
    if any(isinstance(link, MemoryError | torch.OutOfMemoryError) for link in chain):
        return PastoError(
            f"{name} does not fit into memory",
            "Use --set model.quantization=4bit or a smaller model.",
        )
    if any("trust_remote_code" in str(link) for link in chain):
        return PastoError(
            f"{name} needs Python code of its own",
            "Read that code first; then set model.trust_remote_code: true.",
        )
    if is_hub_id(spec.source) and not Path(spec.source).expanduser().is_dir():
        snapshot = cached_snapshot(spec.source, spec.revision)
        if snapshot is not None and (missing := missing_files(snapshot)):
            return PastoError(
                f"the download of {name} is not complete: {missing}",
                "Connect and try again (HF_HUB_OFFLINE must not be set).",
            )
    return PastoError(
        f"{name} is not a causal language model that can be loaded: {first_line(error)}",
        "Check model.source.",
    )


def _hub_failure(chain: list[BaseException], name: str, spec: ModelSpec) -> PastoError | None:
    """What the Hub, or the way to it, refused; None where it was something else."""
    from huggingface_hub import errors as hub

    def any_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    # In this order: a gated repository is also reported as one that was not found.
    if any_of(hub.GatedRepoError):
        return PastoError(
            f"{name} is gated",
            f"Accept its licence on the model's page, then: hf auth login ({spec.source}).",
        )
    if any_of(hub.RevisionNotFoundError):
        return PastoError(
            f"{name}: the Hub has no such revision", "Check model.revision in the recipe."
        )
    if any_of(hub.RepositoryNotFoundError, hub.HFValidationError):
        return PastoError(
            f"{name}: no such folder here, and no such model on the Hub",
            "Check model.source for a typing mistake.",
        )
    unreachable = hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError
    text = " ".join(str(link) for link in chain).lower()
    if any_of(*unreachable, ConnectionError, TimeoutError) or "connect" in text:
        return PastoError(
            f"{name}: no such folder here, it is not in the local cache, and the Hub cannot be "
            f"reached",
            "Check the connection, or point model.source to a local folder or GGUF file.",
        )
    if is_hub_id(spec.source) and any(missing in text for missing in FILES_MISSING):
        return PastoError(
            f"the download of {name} is not complete: {first_line(chain[0])}",
            "Connect and try again; if it stays so, the repository does not hold them.",
        )
    return None


def disk_failure(error: OSError) -> PastoError | None:
    """What the disk refused to the Hub's client; None where it was something else."""
    from huggingface_hub.constants import HF_HUB_CACHE

    states = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
    if error.errno not in (*states, errno.EEXIST, errno.EISDIR):
        return None
    return PastoError(
        f"cannot write {error.filename or HF_HUB_CACHE}: {error.strerror}",
        f"Downloads go to {HF_HUB_CACHE}; HF_HOME names another folder.",
    )


def _disk_failure(link: BaseException) -> PastoError | None:
    return disk_failure(link) if isinstance(link, OSError) else None


def _chain(error: Exception) -> list[BaseException]:
    """An error and what caused it, outermost first."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def first_line(error: BaseException) -> str:
    """The first line of a library's error, at a length that can be printed."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
