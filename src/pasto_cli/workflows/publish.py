"""Adapters to and from the Hub, and the card that goes with them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pasto_cli.base import runs
from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import replace_folder
from pasto_cli.base.hub_ids import is_hub_id
from pasto_cli.core.artifact import store
from pasto_cli.core.records.adapter import Meta
from pasto_cli.core.records.evaluation import EvalRun
from pasto_cli.core.report.card import card
from pasto_cli.workflows.dials import recipe_of
from pasto_cli.workflows.kept_results import kept_results, say_outdated
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
    name: str | None,
    repo: str,
    watch: Watcher,
    *,
    private: bool,
    dry_run: bool,
    base_model: str | None = None,
) -> Pushed:
    """Publish an adapter with a card made from the run's own facts.

    Args:
        name: Run or adapter folder, or None for the latest run.
        repo: `user/name`.
        watch: Told of what others will miss, and of progress.
        private: Make a new repository private.
        dry_run: Upload nothing.
        base_model: Repository of the base, where it was trained on a folder or file of this
            machine; pasto.json and the card then name it.

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
    # A dry run asks nothing of the Hub.
    meta = _with_base(meta, base_model, (lambda _: "main") if dry_run else hub.commit_of, watch)
    text = card(meta, _own_evaluations(folder, meta, watch)).replace("THIS", repo)
    if meta.certificate is None or not meta.certificate.passed:
        watch.warn("this adapter has no passed certificate; its card says so")
    if not (folder / store.TENSORS).is_file():
        raise PastoError(
            f"{folder}: {store.TENSORS} is missing",
            "Train again, or give another adapter with --adapter.",
        )
    facts = store.as_json(meta)
    files = {
        store.TENSORS: (folder / store.TENSORS).stat().st_size,
        store.META: len(facts.encode()),
        store.CARD: len(text.encode()),
    }
    if dry_run:
        return Pushed(text, files, None)
    with watch.task(f"uploading to {repo}"):
        return Pushed(text, files, hub.upload(folder, repo, text, facts, private))


def _with_base(
    meta: Meta, base_model: str | None, commit_of: Callable[[str], str], watch: Watcher
) -> Meta:
    """pasto.json with the base as others will find it; says so where they will not."""
    base = meta.base
    if base_model is not None:
        _require_id(base_model)
        if base.repository not in (None, base_model):
            raise PastoError(
                f"this adapter was trained on {base.repository}, which is on the Hub",
                "Leave --base-model out.",
            )
        spec = base.spec.model_copy(update={"source": base_model, "revision": None})
        named = base.model_copy(update={"spec": spec, "commit": commit_of(base_model)})
        return meta.model_copy(update={"base": named})
    if base.repository is None and not base.spec.source.startswith(("random:", "package:")):
        watch.warn(
            f"the base {base.spec.source} is a folder or file of this machine: say what it is on "
            f"the Hub with --base-model org/name, or others need the same one to use this adapter"
        )
    return meta


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
        store.require_whole(found, meta)
        replace_folder(folder, lambda scratch: shutil.copytree(found, scratch))
    return Pulled(folder, found.name, meta)  # the client's cache names folders by commit


def rewrite_card(folder: Path, meta: Meta, watch: Watcher) -> None:
    """Store changed facts with an adapter, and its card made from them."""
    store.replace_meta(folder, meta, card(meta, _own_evaluations(folder, meta, watch)))


def _own_evaluations(folder: Path, meta: Meta, watch: Watcher) -> list[EvalRun]:
    """What a card shows: a comparison has a table of its own."""
    if folder.name != "adapter":
        return []
    found = kept_results(folder.parent, meta.ends)
    say_outdated(found, watch)
    return [run for run in found.evaluations if run.method is None]
