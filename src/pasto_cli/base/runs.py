"""Run folders, and the adapter folder that a user's argument means.

runs/TIME-NAME/     a run: recipe.yaml, pairs.jsonl, history.jsonl, checkpoint/, adapter/, eval/
runs/latest         link to the last finished run (where there are no links, a text file with its
                    name, which is followed wherever it is named)
"""

import contextlib
import os
import shlex
import shutil
from collections.abc import Callable, Generator
from datetime import datetime
from pathlib import Path

from pasto_cli.base.errors import PastoError
from pasto_cli.base.files import not_written, recover, replace_file, write_text
from pasto_cli.base.hub_ids import looks_like_path
from pasto_cli.base.paths import expanded

RUNS, LATEST = Path("runs"), "latest"
_NAME_IT = "Name the run itself: --adapter runs/TIME-NAME."
ANCHORS, ANSWERS = "anchors.jsonl", "answers.jsonl"
"""Files of a run: what its dial was held to, and what its pairs were asked."""
ADAPTER_META = "pasto.json"
"""The file that makes a folder an adapter's."""


def new_run(name: str, root: Path = RUNS) -> Path:
    """Make the folder of a new run.

    Raises:
        PastoError: If it cannot be made.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(100):
        folder = root / (f"{stamp}-{name}" + (f"-{attempt + 1}" if attempt else ""))
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not root.is_dir():
                break
        except FileNotFoundError:
            continue  # another process has just removed the folder, which was empty
        except OSError as error:
            raise not_written(folder, error) from None
    raise PastoError(f"cannot make a new folder in {root}", "Choose another place with --out.")


@contextlib.contextmanager
def removed_unless(folder: Path, worth: Callable[[], bool]) -> Generator[None, None, None]:
    """Delete a run's folder where something fails before it holds anything worth keeping."""
    try:
        yield
    except BaseException:
        if not worth():
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # only if it is empty
        raise


def mark_latest(folder: Path) -> None:
    """Let `latest` beside a run point to it.

    Raises:
        PastoError: If it cannot be written.
    """
    latest = folder.parent / LATEST
    try:
        replace_file(latest, lambda scratch: scratch.symlink_to(folder.name))
    except PastoError:  # a file system without links
        write_text(latest, folder.name)


def followed(path: str | Path) -> Path:
    """Where a path of the user's leads: `~` expanded, a `latest` that is a text file followed.

    Raises:
        PastoError: If there is no such home, or `latest` does not name a run.
    """
    path = expanded(path)
    for link in (path, *path.parents):
        if link.name == LATEST and link.is_file():
            return link.parent / _name_in(link) / path.relative_to(link)
    return path


def _name_in(link: Path) -> str:
    """The run that a text file `latest` names."""
    try:
        name = link.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PastoError(f"{link}: cannot be read ({error})", _NAME_IT) from None
    # os.path says no to what is no name at all, where pathlib raises.
    if not name or name != Path(name).name or not os.path.isdir(link.parent / name):
        raise PastoError(f"{link}: damaged, {name[:80]!r} is no run here", _NAME_IT)
    return name


def latest_run(root: Path = RUNS) -> Path:
    """The last finished run.

    Raises:
        PastoError: If there is none.
    """
    latest = followed(root / LATEST)
    if not latest.is_dir():
        if latest.is_symlink():
            raise PastoError(f"{latest}: {os.readlink(latest)} is not there any more", _NAME_IT)
        raise PastoError(
            f"no finished run in {root}/",
            "Train one (pasto train quickstart), or give --adapter.",
        )
    return latest.resolve()


def adapter_folder(name: str | None, root: Path = RUNS) -> Path | None:
    """Local adapter folder that a user's argument means, or None where it can only be a Hub id.

    Args:
        name: Run folder, adapter folder, Hub id, or None for the latest run.
        root: Where runs are.

    Raises:
        PastoError: If a path holds no adapter.
    """
    start = latest_run(root) if name is None else followed(name)
    for candidate in (start / "adapter", start):
        if holds_adapter(candidate):
            return candidate
    if name is not None and "/" in name and not looks_like_path(name) and not start.exists():
        if not _holds_runs(start.parent):
            return None
        raise PastoError(
            f"{start}: there is no such run in {start.parent}",
            f"Try {start.parent / LATEST}, or see: ls {shlex.quote(str(start.parent))}",
        )
    raise PastoError(
        f"{start}: no adapter here",
        "Give the folder of a run, its adapter/ folder or a Hub id (user/name).",
    )


def _holds_runs(folder: Path) -> bool:
    """Whether a folder is one of runs, so that what is named in it cannot be meant for the Hub."""
    return next(folder.glob("*/recipe.yaml"), None) is not None


def holds_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's; one that a killed writer left aside is put back first."""
    recover(folder)
    return (folder / ADAPTER_META).exists()


def run_of(adapter: Path) -> Path | None:
    """The run that an adapter folder belongs to, or None for one that was copied or downloaded."""
    run = adapter.parent
    return run if adapter.name == "adapter" and (run / "recipe.yaml").exists() else None
