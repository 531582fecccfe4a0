"""`pasto export`: a dial at stated coefficients, in the formats of other engines."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from pasto_cli import runs
from pasto_cli.core import export
from pasto_cli.errors import PastoError
from pasto_cli.files import writing
from pasto_cli.workflows import Opened, Watcher

FORMATS = ("lora", "merged", "gguf-lora")
FACTS = "pasto_export.json"


class Exported(NamedTuple):
    """One coefficient in another format."""

    coefficient: float
    path: Path
    """Folder, or file for gguf-lora."""
    size: int
    """Bytes."""
    difference: float | None
    """Largest difference of logits to the dial itself, after a fixed prompt; None for merged weights."""
    scale: float | None
    """Largest logit there."""


def export_dial(
    dial: Opened, coefficients: Sequence[float], kind: str, out: Path | None, force: bool, watch: Watcher
) -> list[Exported]:
    """Write one LoRA, merged model or GGUF adapter for each coefficient.

    Args:
        dial: What is exported.
        coefficients: Finite numbers, not 0.
        kind: One of `FORMATS`.
        out: Folder for them; `export/` in the run's folder by default, or here for an adapter without a run.
        force: Replace what is there.
        watch: Told what is written.

    Raises:
        PastoError: For an unknown format, coefficient 0, a name that exists, or a disk that is full.
    """
    if kind not in FORMATS:
        raise PastoError(f"--format {kind!r} is not known", f"Write {', '.join(FORMATS)}.")
    root = out or (runs.run_of(dial.folder) or Path()) / "export"
    found = []
    for a in dict.fromkeys(coefficients):
        path = root / f"{kind}{a:+g}{'.gguf' if kind == 'gguf-lora' else ''}"
        if path.exists() and not force:
            raise PastoError(f"{path} is there already", "Give another --out, or --force to replace it.")
        factors = export.low_rank(dial.adapter, a)
        difference = scale = None
        if kind != "merged":
            difference, scale = export.largest_difference(dial.lm, dial.adapter, a, factors)
        with watch.task(f"writing {path}"):
            if kind == "gguf-lora":
                _replace(path, lambda file, f=factors: export.save_gguf_lora(file, dial.lm, f))
            else:
                _replace(path, lambda folder, a=a, f=factors: _fill(folder, dial, a, kind, f))
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size
        found.append(Exported(a, path, size, difference, scale))
    return found


def _fill(folder: Path, dial: Opened, a: float, kind: str, factors: dict[str, export.LowRank]) -> None:
    folder.mkdir()
    if kind == "lora":
        export.save_lora(folder, dial.lm, factors)
    else:
        export.save_merged(folder, dial.lm, dial.adapter, a)
    base = dial.meta.base
    facts: dict[str, Any] = {
        "coefficient": a, "format": kind, "base": base.spec.model_dump(mode="json"), "commit": base.commit,
        "personas": dial.meta.personas, "recipe": dial.meta.recipe["name"], "versions": dial.meta.versions,
    }  # fmt: skip
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside, then rename: what is at `path` is the old or the new one, whole."""
    scratch, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(scratch)
        try:
            write(scratch)
            if path.exists():
                path.rename(old)
            scratch.rename(path)
        except SafetensorError as error:
            raise PastoError(f"cannot write {path}: {error}", "Free some disk, or choose another place with --out.") from None
        finally:
            if old.exists() and not path.exists():  # interrupted between the two renames
                old.rename(path)
            _remove(scratch)
            _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
