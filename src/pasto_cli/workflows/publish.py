"""Adapters to and from the Hub, and the card that goes with them."""

import contextlib
import shutil
from pathlib import Path
from typing import NamedTuple

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import replace_folder
from pasto_cli.base.hub_ids import is_hub_id, looks_like_path
from pasto_cli.core.artifact import store
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.evaluation import EvalRun, parse
from pasto_cli.core.report.card import card
from pasto_cli.workflows.dials import recipe_of
from pasto_cli.workflows.progress import Watcher


class Pushed(NamedTuple):
    """What was published, or would be."""

    card: str
    files: dict[str, int]
    """Name -> bytes."""
    address: str | None
    """Address of the commit; None for a dry run."""


class Pulled(NamedTuple):
    """What was copied from the Hub."""

    folder: Path
    commit: str
    meta: Meta


def push_adapter(
    name: str | None, repo: str, watch: Watcher, *, private: bool, dry_run: bool
) -> Pushed:
    """Publish an adapter with a card made from the run's own facts.

    Args:
        name: Run or adapter folder, or None for the latest run.
        repo: `user/name`.
        watch: Told of what others will miss, and of progress.
        private: Make a new repository private.
        dry_run: Upload nothing.

    Raises:
        PastoError: If there is no such adapter here, or the Hub does not take it.
    """
    from pasto_cli.core.artifact import hub

    _require_id(repo)
    folder = runs.adapter_folder(name)
    if folder is None:
        raise PastoError(f"{name} is on the Hub already", "Give a local run or adapter folder.")
    meta = store.read_meta(folder)
    recipe_of(meta, folder)
    text = card(meta, _own_evaluations(folder)).replace("THIS", repo)
    source = meta.base.spec.source
    if looks_like_path(source) or source.endswith(".gguf"):
        watch.warn(
            f"the base {source} is not on the Hub: others need the same file to use this adapter"
        )
    if meta.certificate is None or not meta.certificate.passed:
        watch.warn("this adapter has no passed certificate; its card says so")
    if not (folder / store.TENSORS).is_file():
        raise PastoError(
            f"{folder}: {store.TENSORS} is missing",
            "Train again, or give another adapter with --adapter.",
        )
    files = {name: (folder / name).stat().st_size for name in (store.TENSORS, store.META)}
    files[store.CARD] = len(text.encode())
    if dry_run:
        return Pushed(text, files, None)
    with watch.task(f"uploading to {repo}"):
        return Pushed(text, files, hub.upload(folder, repo, text, private))


def _require_id(repo: str) -> None:
    """See that a repository id is one: `user/name`, neither of them a path such as `..`."""
    if not is_hub_id(repo):
        raise PastoError(f"{repo!r} is not a repository id", "Write user/name.")


def pull_adapter(
    repo: str, out: Path | None, revision: str | None, watch: Watcher, *, force: bool
) -> Pulled:
    """Copy an adapter from the Hub into a folder, as a whole or not at all.

    Args:
        repo: `user/name`.
        out: The folder; by default the repository's name, here.
        revision: Branch, tag or commit.
        watch: Told of progress.
        force: Replace an adapter that is there.

    Raises:
        PastoError: If it is not there or no adapter of ours, or the folder exists.
    """
    from pasto_cli.core.artifact import hub

    _require_id(repo)
    folder = out or Path(repo.rpartition("/")[2])
    if folder.exists() and not force:
        raise PastoError(
            f"{folder} is there already", "Give another --out, or --force to replace it."
        )
    if folder.exists() and not (folder / store.META).is_file():
        raise PastoError(f"{folder} is no adapter: it is not replaced", "Give another --out.")
    folder = folder.resolve() if folder.name == "" else folder
    with watch.task(f"fetching {repo}"):
        found = hub.download(repo, revision=revision)
        meta = store.read_meta(found)
        recipe_of(meta, found)
        replace_folder(folder, lambda scratch: shutil.copytree(found, scratch))
    return Pulled(folder, found.name, meta)  # the client's cache names folders by commit


def rewrite_card(folder: Path, meta: Meta) -> None:
    """Store changed facts with an adapter, and its card made from them."""
    store.replace_meta(folder, meta, card(meta, _own_evaluations(folder)))


def evaluations_of(run: Path) -> list[EvalRun]:
    """Everything measured with a run's adapter, comparisons included; other files are skipped."""
    found = []
    for path in sorted((run / "eval").glob("*.json")):
        with contextlib.suppress(ValueError, OSError):
            found.append(parse(path.read_text(encoding="utf-8")))
    return found


def _own_evaluations(folder: Path) -> list[EvalRun]:
    """What a card shows: a comparison has a table of its own."""
    found = evaluations_of(folder.parent) if folder.name == "adapter" else []
    return [run for run in found if run.method is None]
